//! Where a layer is converted: on threads of this process, or in a confined converter process.

use std::{fs::File, io::BufRead, sync::Arc};

use super::{ConvertError, Converted, Limits, Staged, confined::ConfinedStaged, open_below, stage_blob};
use crate::{Converter, Digest};

/// A layer whose bytes are all in, wherever.
#[derive(Debug)]
pub(crate) enum StagedLayer {
    Here(Box<Staged>),
    Confined(ConfinedStaged),
}

/// Reads a whole blob. Blocking.
pub(crate) fn stage_layer(
    converter: &Converter,
    blob: impl BufRead + Send + 'static,
    diff_id: &Digest,
    out: File,
    limits: &Limits,
) -> Result<StagedLayer, ConvertError> {
    match converter {
        Converter::InProcess => {
            stage_blob(blob, diff_id, out, limits).map(|staged| StagedLayer::Here(Box::new(staged)))
        }
        Converter::Program { program, args } => {
            ConfinedStaged::stage(program, args, blob, diff_id, out, limits).map(StagedLayer::Confined)
        }
    }
}

impl StagedLayer {
    /// Completes the layer over those below, lowest first. Blocking.
    pub(crate) fn finish(self, below: &[Arc<File>]) -> Result<Converted, ConvertError> {
        match self {
            Self::Here(staged) => staged.finish(&open_below(below)?),
            Self::Confined(staged) => staged.finish(below),
        }
    }
}
