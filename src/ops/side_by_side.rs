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

/// All in a dispatch of their own, each by the kernel it prefers: where one for all would bind too many buffers, or there is none.
pub(in crate::ops) fn one_by_one(
    name: &str,
    members: &[Member],
    program: Option<&Pointwise>,
    inputs: &[Type],
    outputs: &[Type],
    caps: &Caps,
) -> Variant {
    let mut whole = Variant { name: name.to_string(), launches: vec![], scratch: vec![] };
    let mut made = vec![];
    for (number, member) in members.iter().enumerate() {
        let types = member.types(inputs);
        let output = outputs[if program.is_some() { 0 } else { number }].clone();
        let mut variants = member.op.launch(&types, std::slice::from_ref(&output), caps);
        let place = match program {
            Some(_) => Bind::Scratch(whole.scratch.len()),
            None => Bind::Output(number),
        };
        whole.scratch.extend(program.map(|_| output.size_bytes()));
        let own = variants.swap_remove(0);
        let first = whole.scratch.len();
        whole.scratch.extend(own.scratch);
        whole.launches.extend(own.launches.into_iter().map(|launch| {
            rebound(launch, |bind| match bind {
                Bind::Input(i) => Bind::Input(member.inputs[i]),
                Bind::Output(_) => place,
                Bind::Scratch(i) => Bind::Scratch(first + i),
            })
        }));
        made.push(place);
    }
    if let Some(program) = program {
        let kinds = vec![outputs[0].clone(); members.len()];
        let ending = program.launch(&kinds, outputs, caps).swap_remove(0);
        whole.launches.extend(
            ending
                .launches
                .into_iter()
                .map(|launch| rebound(launch, |bind| if let Bind::Input(i) = bind { made[i] } else { bind })),
        );
    }
    whole
}

fn rebound(mut launch: Launch, place: impl Fn(Bind) -> Bind) -> Launch {
    launch.bindings.iter_mut().for_each(|bind| *bind = place(*bind));
    launch
}
