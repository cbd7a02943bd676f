//! Runs that a task awaits: they are done on a thread of the library's own, which wakes the task when they are over.
//!
//! Every device has one such thread, started by the first run that is awaited, because runs of a device take turns
//! anyway. No thread of the runtime waits: not for the CPU's kernels, which this thread and the device's pool compute,
//! and not for a GPU, whose shared event this thread waits for. A future begins when it is polled first. If it is
//! dropped before its turn, its run is left out; if later, the run ends as any other and its outputs are dropped, so
//! that no state is left half updated. An error reaches the task, and so does a panic, as from a call that blocks.
//!
//! ```
//! use metal_candle::backend::Device;
//! use metal_candle::graph::Graph;
//! use metal_candle::tensor::HostTensor;
//!
//! # fn main() -> metal_candle::Result<()> {
//! let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
//! let device = Device::cpu(1)?;
//! let graph = Graph::new();
//! let x = graph.constant(HostTensor::from_slice(&[3.0_f32, 4.0], [1, 2])?);
//! let doubled = runtime.block_on(x.add(&x)?.eval_async(&device))?;
//! assert_eq!(doubled.as_slice::<f32>()?, [6.0, 8.0]);
//! # Ok(())
//! # }
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use tokio::sync::oneshot;

use super::{Device, Program};
use crate::graph::LazyTensor;
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// What the thread does next.
type Job = Box<dyn FnOnce() + Send>;

/// What became of a job: its result, or its panic.
pub(crate) type Outcome<T> = std::thread::Result<Result<T>>;

/// A thread that does jobs in the order in which they come. It ends when the worker is dropped and no job is left.
#[derive(Default)]
pub(crate) struct Worker(Mutex<Option<mpsc::Sender<Job>>>);

impl Worker {
    /// Does `work` after all jobs so far, unless nobody waits for it any more when its turn comes.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<oneshot::Receiver<Outcome<T>>> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move || {
            if !sender.is_closed() {
                // The task may have gone meanwhile; then what was computed goes too.
                let _ = sender.send(catch_unwind(AssertUnwindSafe(work)));
            }
        });
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = match &*jobs {
            Some(queue) => queue,
            None => jobs.insert(thread()?),
        };
        queue.send(job).map_err(|_| ended())?;
        Ok(receiver)
    }
}

fn thread() -> Result<mpsc::Sender<Job>> {
    let (sender, jobs) = mpsc::channel::<Job>();
    let name = "metal-candle-async".to_owned();
    let thread = std::thread::Builder::new().name(name).stack_size(super::cpu::STACK);
    let started = thread.spawn(move || jobs.iter().for_each(|job| job()));
    match started {
        Ok(_) => Ok(sender),
        Err(error) => {
            Err(Error::invalid("async-exec", format!("the system gives no thread: {error}; end others")))
        }
    }
}

/// The result of a job that was started.
pub(crate) fn outcome<T>(received: std::result::Result<Outcome<T>, oneshot::error::RecvError>) -> Result<T> {
    match received {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => Err(ended()),
    }
}

fn ended() -> Error {
    Error::invalid("async-exec", "the library's thread is gone; make the device or generator anew")
}

/// The future of work on a worker.
async fn awaited<T: Send + 'static>(
    worker: Arc<Worker>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let receiver = worker.start(work)?;
    outcome(receiver.await)
}

impl Program {
    /// [`Program::run`] for a task to await; see [`crate::backend::asynchronous`]. Cloned inputs share their bytes.
    pub fn run_async(
        &self,
        inputs: Vec<HostTensor>,
    ) -> impl Future<Output = Result<Vec<HostTensor>>> + Send + use<> {
        let program = self.clone();
        awaited(Arc::clone(self.worker()), move || program.run(&inputs.iter().collect::<Vec<_>>()))
    }
}

impl Device {
    /// [`Device::eval`] for a task to await; compilation too is done outside the runtime. See
    /// [`crate::backend::asynchronous`].
    pub fn eval_async(
        &self,
        tensors: &[LazyTensor],
    ) -> impl Future<Output = Result<Vec<HostTensor>>> + Send + use<> {
        let (device, tensors) = (self.clone(), tensors.to_vec());
        awaited(Arc::clone(self.worker()), move || device.eval(&tensors))
    }
}

impl LazyTensor {
    /// [`LazyTensor::eval`] for a task to await; see [`crate::backend::asynchronous`].
    pub fn eval_async(&self, device: &Device) -> impl Future<Output = Result<HostTensor>> + Send + use<> {
        let (tensor, owned) = (self.clone(), device.clone());
        awaited(Arc::clone(device.worker()), move || tensor.eval(&owned))
    }
}
