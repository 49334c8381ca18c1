//! What operators share that do the work of several like one another, side by side or through a program.

use super::launch::{Bind, Caps, Launch, Variant};
use super::pointwise::Pointwise;
use super::{Error, Operator, Result, expect_shape};
use crate::tensor::{Data, Tensor, Type, View, ViewMut};
use std::sync::Arc;

/// One of them, with one output.
pub(in crate::ops) struct Member {
    pub op: Arc<dyn Operator>,
    /// Which inputs of the whole it reads.
    pub inputs: Vec<usize>,
}

impl Member {
    /// Types of its inputs.
    pub fn types(&self, inputs: &[Type]) -> Vec<Type> {
        self.inputs.iter().map(|&i| inputs[i].clone()).collect()
    }
}

/// The outputs of all; with a program the one it makes of them, all of one type.
pub(in crate::ops) fn expect_program(
    op: &'static str,
    program: Option<&Pointwise>,
    mut outputs: Vec<Type>,
) -> Result<Vec<Type>> {
    let Some(program) = program else { return Ok(outputs) };
    if program.inputs != outputs.len() || program.outputs.len() != 1 {
        let got = format!("{} inputs, {} outputs", program.inputs, program.outputs.len());
        let expected = format!("a program of {} inputs and one output", outputs.len());
        return Err(Error::Setting { op, setting: "program", expected, got });
    }
    for other in &outputs[1..] {
        expect_shape(op, "codes", other, &outputs[0].shape)?;
    }
    outputs.truncate(1);
    Ok(outputs)
}

/// The reference of all.
pub(in crate::ops) fn reference(
    members: &[Member],
    program: Option<&Pointwise>,
    inputs: &[&Tensor],
    outputs: &mut [Tensor],
) {
    let own = |member: &Member| member.inputs.iter().map(|&i| inputs[i]).collect::<Vec<_>>();
    let Some(program) = program else {
        let each = members.iter().zip(outputs);
        return each.for_each(|(member, y)| member.op.reference(&own(member), std::slice::from_mut(y)));
    };
    let empty = Data::zeros(outputs[0].data.dtype(), outputs[0].data.len());
    let mut sums = vec![Tensor { shape: outputs[0].shape.clone(), data: empty }; members.len()];
    for (member, sum) in members.iter().zip(&mut sums) {
        member.op.reference(&own(member), std::slice::from_mut(sum));
    }
    program.reference(&sums.iter().collect::<Vec<_>>(), outputs);
}

/// The host path of all.
pub(in crate::ops) fn host(
    members: &[Member],
    program: Option<&Pointwise>,
    inputs: &[View],
    outputs: &mut [ViewMut],
) {
    let own = |member: &Member| member.inputs.iter().map(|&i| inputs[i]).collect::<Vec<_>>();
    let Some(program) = program else {
        let each = members.iter().zip(outputs);
        return each.for_each(|(member, y)| member.op.host(&own(member), std::slice::from_mut(y)));
    };
    let mut sums = vec![Tensor::zeros(&outputs[0].as_view().host_type()); members.len()];
    for (member, sum) in members.iter().zip(&mut sums) {
        member.op.host(&own(member), &mut [ViewMut::of_tensor(sum)]);
    }
    program.host(&sums.iter().map(View::of_tensor).collect::<Vec<_>>(), outputs);
}

/// All in a dispatch of their own: where one for all would bind too many buffers, or there is none.
pub(in crate::ops) fn one_by_one(
    name: &str,
    members: &[Member],
    program: Option<&Pointwise>,
    inputs: &[Type],
    outputs: &[Type],
    caps: &Caps,
) -> Variant {
    let (mut steps, mut scratch, mut made) = (vec![], vec![], vec![]);
    for (number, member) in members.iter().enumerate() {
        let given = member.inputs.iter().map(|&i| (Bind::Input(i), inputs[i].clone())).collect();
        let (place, kind) = match program {
            Some(_) => (Bind::Scratch(number), outputs[0].clone()),
            None => (Bind::Output(number), outputs[number].clone()),
        };
        scratch.extend(program.map(|_| kind.size_bytes()));
        made.push((place, kind.clone()));
        steps.push(Step { op: member.op.clone(), inputs: given, outputs: vec![(place, kind)] });
    }
    if let Some(program) = program {
        let outputs = vec![(Bind::Output(0), outputs[0].clone())];
        steps.push(Step { op: Arc::new(program.clone()), inputs: made, outputs });
    }
    sequence(name, &steps, scratch, caps)
}

/// An operator in a variant of several: where its inputs and outputs lie, and of what type.
pub(in crate::ops) struct Step {
    pub op: Arc<dyn Operator>,
    pub inputs: Vec<(Bind, Type)>,
    pub outputs: Vec<(Bind, Type)>,
}

/// Operators one after another, each by the kernel it prefers; `scratch` is what passes between them.
pub(in crate::ops) fn sequence(name: &str, steps: &[Step], scratch: Vec<u64>, caps: &Caps) -> Variant {
    let mut whole = Variant { name: name.to_string(), launches: vec![], scratch };
    for Step { op, inputs, outputs } in steps {
        let types = |places: &[(Bind, Type)]| places.iter().map(|(_, kind)| kind.clone()).collect::<Vec<_>>();
        let own = op.launch(&types(inputs), &types(outputs), caps).swap_remove(0);
        let first = whole.scratch.len();
        whole.scratch.extend(own.scratch);
        whole.launches.extend(own.launches.into_iter().map(|launch| {
            rebound(launch, |bind| match bind {
                Bind::Input(i) => inputs[i].0,
                Bind::Output(i) => outputs[i].0,
                Bind::Scratch(i) => Bind::Scratch(first + i),
            })
        }));
    }
    whole
}

fn rebound(mut launch: Launch, place: impl Fn(Bind) -> Bind) -> Launch {
    launch.bindings.iter_mut().for_each(|bind| *bind = place(*bind));
    launch
}
