//! A model with its adapter, loaded as the command line asks.

use std::cell::RefCell;
use std::path::Path;

use metal_candle::backend::Device;
use metal_candle::models::{AdapterParameters, Decoder, ModelFiles};
use metal_candle::tensor::DType;
use metal_candle::training::Adapter;

use crate::adapter_source::{self, Chosen, content_of};
use crate::args::ModelArgs;
use crate::fetch;
use crate::memory;
use crate::session::Session;
use crate::{settings, template_vars};

/// A model ready to run.
pub(crate) struct Loaded {
    pub(crate) files: ModelFiles,
    pub(crate) decoder: Decoder,
}

impl Loaded {
    /// Fetches the model if it is not here, and loads it onto a device.
    pub(crate) fn open(
        model: &str,
        dtype: DType,
        device: &Device,
        session: &Session,
    ) -> anyhow::Result<Self> {
        let path = fetch::resolve(model, fetch::Options::default(), session)?.path;
        let mut files = ModelFiles::open(&path)?;
        files.chat_template =
            files.chat_template.map(|template| template.with_stop(session.interrupt.flag()));
        memory::check_model(&files.weights, dtype)?;
        let meter = RefCell::new(session.progress.count("loading the model", 100));
        let progress = |share: f64| meter.borrow_mut().set((share * 100.0) as u64);
        let decoder = Decoder::load(files.config.clone(), &files.weights, device, dtype, &progress)?;
        Ok(Self { files, decoder })
    }

    /// As `generate`, `chat` and `eval` are asked for it, with the adapter.
    pub(crate) fn from_args(
        args: &ModelArgs,
        session: &Session,
    ) -> anyhow::Result<(Self, Option<AdapterParameters>)> {
        // An adapter that cannot be read is told before the model is fetched and loaded.
        let adapter = args.adapter.as_deref().map(|given| Chosen::open(given, session)).transpose()?;
        let model = adapter_source::model(args.model.as_deref(), adapter.as_ref(), session)?;
        let (dtype, device) = (settings::dtype(&args.dtype)?, settings::device(&args.device, args.threads)?);
        let variables = template_vars::parse(&args.template_var)?;
        let of_adapter = adapter.as_ref().filter(|_| args.model.is_none());
        let mut loaded = Self::open(&model, dtype, &device, session).map_err(|error| match of_adapter {
            Some(chosen) => chosen.base_not_reached(error),
            None => error,
        })?;
        template_vars::set(&mut loaded.files, variables, session)?;
        let Some(chosen) = adapter else { return Ok((loaded, None)) };
        chosen.announce(&model, &loaded.files, &content_of(&loaded.decoder))?;
        let placed = loaded.place(&chosen.adapter)?;
        Ok((loaded, Some(placed)))
    }

    /// Puts an adapter on the model's device.
    pub(crate) fn place(&self, adapter: &Adapter) -> anyhow::Result<AdapterParameters> {
        adapter.check(&self.decoder.linear_modules())?;
        adapter.check_copies(&self.files.weights)?;
        Ok(adapter.on(self.decoder.device())?)
    }

    /// Reads an adapter's folder and puts it on the model's device.
    pub(crate) fn adapter(&self, folder: &Path) -> anyhow::Result<AdapterParameters> {
        self.place(&Adapter::load(folder)?)
    }
}
