//! Text that comes to a task as a stream, while a thread of the library's own generates it.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tokio::sync::{mpsc, oneshot};

use super::{GenerateOptions, Generation, Generator};
use crate::Result;
use crate::backend::asynchronous::{Outcome, Worker, outcome};
use crate::models::Tokenizer;

/// A generator on a thread of its own: no thread of the runtime computes or waits for the device.
///
/// What is asked of it is done in turn. The tokens that the cache holds stay from one call to the next, as with
/// [`Generator`].
pub struct AsyncGenerator {
    generator: Arc<Mutex<Generator<'static>>>,
    tokenizer: Arc<Tokenizer>,
    worker: Worker,
}

impl AsyncGenerator {
    /// From a generator that owns its model ([`Generator::owned`]).
    pub fn new(generator: Generator<'static>, tokenizer: Tokenizer) -> Self {
        Self {
            generator: Arc::new(Mutex::new(generator)),
            tokenizer: Arc::new(tokenizer),
            worker: Worker::default(),
        }
    }

    /// Begins to generate from the tokens of a prompt. The text is generated whether it is read or not, and waits in
    /// memory until then.
    pub fn generate(&self, prompt: Vec<u32>, options: GenerateOptions) -> Result<TextStream> {
        let (sender, pieces) = mpsc::unbounded_channel();
        let (generator, tokenizer) = (Arc::clone(&self.generator), Arc::clone(&self.tokenizer));
        let done = self.worker.start(move || {
            // A panic leaves the cache with the tokens whose steps were over.
            let mut generator = generator.lock().unwrap_or_else(PoisonError::into_inner);
            let mut on_text = |piece: &str| sender.send(piece.to_owned()).is_ok();
            generator.generate_while(&tokenizer, &prompt, &options, &mut on_text, &|| !sender.is_closed())
        })?;
        Ok(TextStream { pieces, done: Some(done), generation: None })
    }

    /// Does something with the generator when its turn comes: exchanges the adapter, forgets the tokens, reads logits.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Generator<'static>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let generator = Arc::clone(&self.generator);
        let done =
            self.worker.start(move || work(&mut generator.lock().unwrap_or_else(PoisonError::into_inner)))?;
        outcome(done.await)
    }
}

/// The pieces of a text that is being generated. Dropping it ends the generation before its next step.
///
/// An error is the last item. A panic of the generation goes on in the task that asks for the next piece.
pub struct TextStream {
    pieces: mpsc::UnboundedReceiver<String>,
    /// Taken when the result is there.
    done: Option<oneshot::Receiver<Outcome<Generation>>>,
    generation: Option<Generation>,
}

impl TextStream {
    /// The next piece; `None` after the last one. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<String>> {
        poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// The whole text with its tokens and times, after [`TextStream::next`] gave `None` and no error before.
    pub fn generation(&self) -> Option<&Generation> {
        self.generation.as_ref()
    }

    /// Passes over the pieces that were not read and waits for the result.
    pub async fn finish(mut self) -> Result<Generation> {
        while self.pieces.recv().await.is_some() {}
        match (self.generation, self.done) {
            (Some(generation), _) => Ok(generation),
            (None, Some(done)) => outcome(done.await),
            (None, None) => Err(crate::Error::invalid("a stream of text", "has given its error before")),
        }
    }
}

impl Stream for TextStream {
    type Item = Result<String>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(piece) = ready!(self.pieces.poll_recv(context)) {
            return Poll::Ready(Some(Ok(piece)));
        }
        let Some(done) = &mut self.done else { return Poll::Ready(None) };
        let received = ready!(Pin::new(done).poll(context));
        self.done = None;
        match outcome(received) {
            Ok(generation) => {
                self.generation = Some(generation);
                Poll::Ready(None)
            }
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }
}
