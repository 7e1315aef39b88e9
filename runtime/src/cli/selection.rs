//! The pipeline and the component that an argument names.

use trunkline_connector::{Error, Result};

use crate::plan::{Input, Pipeline, SinkPlan, SourcePlan, TransformPlan};

/// A component with a stage.
#[derive(Clone, Copy)]
pub(super) enum Component<'p> {
    /// A source.
    Source(&'p SourcePlan),
    /// A separate transform.
    Transform(&'p TransformPlan),
    /// A sink.
    Sink(&'p SinkPlan),
}

impl<'p> Component<'p> {
    /// Its name.
    pub(super) fn name(self) -> &'p str {
        match self {
            Self::Source(plan) => &plan.name,
            Self::Transform(plan) => &plan.name,
            Self::Sink(plan) => &plan.name,
        }
    }

    /// The kind of component.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Source(_) => "source",
            Self::Transform(_) => "transform",
            Self::Sink(_) => "sink",
        }
    }

    /// The topics that it reads.
    pub(super) fn inputs(self) -> &'p [Input] {
        match self {
            Self::Source(_) => &[],
            Self::Transform(plan) => &plan.inputs,
            Self::Sink(plan) => &plan.inputs,
        }
    }
}

/// The pipeline with this name.
pub(super) fn pipeline<'p>(pipelines: &'p [Pipeline], name: &str) -> Result<&'p Pipeline> {
    pipelines.iter().find(|pipeline| pipeline.name == name).ok_or_else(|| {
        let known: Vec<&str> = pipelines.iter().map(|pipeline| pipeline.name.as_str()).collect();
        let message = format!("no file defines the pipeline `{name}`; known: {}", known.join(", "));
        Error::config("cli.unknown_pipeline", message)
    })
}

/// The stages of a pipeline.
pub(super) fn components(pipeline: &Pipeline) -> Vec<Component<'_>> {
    let sources = pipeline.sources.iter().map(Component::Source);
    let transforms = pipeline.transforms.iter().map(Component::Transform);
    sources.chain(transforms).chain(pipeline.sinks.iter().map(Component::Sink)).collect()
}

/// The component with the name `PIPELINE.COMPONENT`.
pub(super) fn component<'p>(pipelines: &'p [Pipeline], name: &str) -> Result<(&'p Pipeline, Component<'p>)> {
    let Some((pipeline_name, component_name)) = name.split_once('.') else {
        let stages =
            components(pipeline(pipelines, name)?).into_iter().map(|stage| format!("`{name}.{}`", stage.name()));
        let message = format!(
            "`{name}` names a pipeline, and no component of it: write {}",
            stages.collect::<Vec<_>>().join(" or ")
        );
        return Err(Error::config("cli.unknown_component", message));
    };
    let found = pipeline(pipelines, pipeline_name)?;
    let components = components(found);
    match components.iter().find(|component| component.name() == component_name) {
        Some(component) => Ok((found, *component)),
        None => {
            let known: Vec<&str> = components.iter().map(|component| component.name()).collect();
            let message = format!(
                "the pipeline `{pipeline_name}` has no stage `{component_name}`; its stages: {}. A fused transform has no \
                 position: it runs in the stage that reads it",
                known.join(", ")
            );
            Err(Error::config("cli.unknown_component", message))
        }
    }
}

/// The sink with this name, or the only one.
pub(super) fn sink<'p>(pipeline: &'p Pipeline, name: Option<&str>) -> Result<&'p SinkPlan> {
    let known = || pipeline.sinks.iter().map(|sink| sink.name.as_str()).collect::<Vec<_>>().join(", ");
    match name {
        Some(name) => pipeline.sinks.iter().find(|sink| sink.name == name).ok_or_else(|| {
            let message = format!("the pipeline `{}` has no sink `{name}`; its sinks: {}", pipeline.name, known());
            Error::config("cli.unknown_component", message)
        }),
        None => match pipeline.sinks.as_slice() {
            [sink] => Ok(sink),
            _ => {
                let message = format!("choose one of the sinks of `{}` with --sink: {}", pipeline.name, known());
                Err(Error::config("cli.unknown_component", message))
            }
        },
    }
}
