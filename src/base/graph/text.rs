//! A graph as text: one line a value or node, stable from run to run, meant to be read and to be compared.

use super::{Graph, Source};
use std::fmt::{self, Display};

impl Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, value) in self.values.iter().enumerate() {
            let name = value.name.as_deref().unwrap_or("");
            match &value.source {
                Source::Input => writeln!(f, "%{i} = input `{name}` : {}", value.kind)?,
                Source::Parameter => writeln!(f, "%{i} = parameter `{name}` : {}", value.kind)?,
                Source::Frozen => writeln!(f, "%{i} = frozen `{name}` : {}", value.kind)?,
                Source::State => writeln!(f, "%{i} = state `{name}` : {}", value.kind)?,
                Source::Constant(_) => writeln!(f, "%{i} = constant : {}", value.kind)?,
                Source::Node { .. } => {}
            }
        }
        let list = |values: &[crate::ops::Value]| {
            values.iter().map(|v| format!("%{}", v.0)).collect::<Vec<_>>().join(", ")
        };
        for node in &self.nodes {
            let settings = node.op.settings();
            let settings = if settings.is_empty() { settings } else { format!(" {{{settings}}}") };
            let kinds: Vec<_> = node.outputs.iter().map(|&v| self.kind(v).to_string()).collect();
            let (outputs, inputs) = (list(&node.outputs), list(&node.inputs));
            write!(f, "{outputs} = {}({inputs}){settings} : {}", node.op.name(), kinds.join(", "))?;
            if !node.scope.is_empty() {
                write!(f, "  # {}", node.scope)?;
            }
            writeln!(f)?;
        }
        for (name, value) in &self.outputs {
            writeln!(f, "output `{name}` = %{}", value.0)?;
        }
        Ok(())
    }
}
