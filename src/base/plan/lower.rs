//! The last step: every node becomes dispatches whose bindings, parameters and workgroups are decided.

use super::lifetimes::Owner;
use super::{
    ALIGNMENT, Binding, Dispatch, Error, Feed, Known, Place, Plan, Read, Residents, Result, assign,
    lifetimes, order, padded_bytes, prepare,
};
use crate::graph::{Graph, Node, Source, storage_roots};
use crate::ops::launch::{Bind, Caps, Variant};
use crate::tensor::Type;

/// Picks one of a node's variants: the number of the one to use, or none if all are known to compute wrongly here.
pub type Choose<'a> = dyn FnMut(&Node, &[Type], &[Variant]) -> Option<usize> + 'a;

/// The variant an operator itself prefers.
pub fn first_variant(_: &Node, _: &[Type], _: &[Variant]) -> Option<usize> {
    Some(0)
}

/// Plans a graph for an adapter.
pub fn plan(graph: &Graph, residents: &Residents, caps: &Caps, choose: &mut Choose) -> Result<Plan> {
    let graph = prepare(graph, residents)?;
    graph.verify()?;
    let order = order(&graph);
    let chosen = graph
        .nodes()
        .iter()
        .map(|node| choose_variant(&graph, node, caps, choose))
        .collect::<Result<Vec<_>>>()?;
    let storages = lifetimes(&graph, &order, residents, &chosen);
    let (slot_of, slots) = assign(&storages);
    let slot = |owner: Owner| storages.iter().position(|s| s.owner == owner).map(|i| Place::Slot(slot_of[i]));

    let mut plan = Plan {
        slots,
        places: vec![None; graph.values().len()],
        feeds: vec![],
        feed_bytes: 0,
        known: vec![],
        known_bytes: 0,
        reads: vec![],
        dispatches: vec![],
        graph,
    };
    place_values(&mut plan, residents, &slot)?;
    for &number in &order {
        if let Some(variant) = &chosen[number] {
            lower_node(&mut plan, number, variant, caps, &slot)?;
        }
    }
    for (name, value) in plan.graph.outputs() {
        if !residents.results.contains_key(name) {
            let place = plan.places[value.index()].expect("a result has a place");
            plan.reads.push(Read { name: name.clone(), kind: plan.graph.kind(*value).clone(), place });
        }
    }
    Ok(plan)
}

fn types(graph: &Graph, values: &[crate::ops::Value]) -> Vec<Type> {
    values.iter().map(|&v| graph.kind(v).clone()).collect()
}

fn choose_variant(graph: &Graph, node: &Node, caps: &Caps, choose: &mut Choose) -> Result<Option<Variant>> {
    if node.op.is_view() {
        return Ok(None);
    }
    let inputs = types(graph, &node.inputs);
    let mut variants = node.op.launch(&inputs, &types(graph, &node.outputs), caps);
    if variants.is_empty() {
        let types = inputs.iter().map(Type::to_string).collect::<Vec<_>>().join(", ");
        return Err(Error::NoKernel { op: node.op.name(), types });
    }
    match choose(node, &inputs, &variants) {
        Some(number) => Ok(Some(variants.swap_remove(number.min(variants.len() - 1)))),
        None => Err(Error::NoSoundKernel { op: node.op.name() }),
    }
}

type SlotOf<'a> = dyn Fn(Owner) -> Option<Place> + 'a;

/// Gives every value its place: given ones first, then slots, then views through their roots.
fn place_values(plan: &mut Plan, residents: &Residents, slot: &SlotOf) -> Result<()> {
    let roots = storage_roots(&plan.graph);
    let mut results = vec![None; plan.places.len()];
    for (name, value) in plan.graph.outputs() {
        if let Some(&span) = residents.results.get(name) {
            results[roots[value.index()].index()] = Some(Place::Arena(span));
        }
    }
    for (at, info) in plan.graph.values().iter().enumerate() {
        if roots[at].index() != at {
            continue;
        }
        let name = info.name.clone().unwrap_or_default();
        plan.places[at] = Some(match &info.source {
            Source::Input => {
                let offset_bytes = plan.feed_bytes;
                plan.feed_bytes += padded_bytes(&info.kind).next_multiple_of(ALIGNMENT);
                plan.feeds.push(Feed { name, kind: info.kind.clone(), offset_bytes });
                Place::Input(offset_bytes)
            }
            Source::Constant(tensor) => {
                let offset_bytes = plan.known_bytes;
                plan.known_bytes += padded_bytes(&info.kind).next_multiple_of(ALIGNMENT);
                plan.known.push(Known { tensor: tensor.clone(), kind: info.kind.clone(), offset_bytes });
                Place::Constant(offset_bytes)
            }
            Source::Parameter | Source::Frozen | Source::State => {
                Place::Arena(*residents.places.get(&name).ok_or(Error::NoPlace { name })?)
            }
            Source::Node { .. } => match results[at].or_else(|| slot(Owner::Value(at))) {
                Some(place) => place,
                None => continue,
            },
        });
    }
    for (at, root) in roots.iter().enumerate() {
        plan.places[at] = plan.places[root.index()];
    }
    Ok(())
}

fn lower_node(plan: &mut Plan, number: usize, variant: &Variant, caps: &Caps, slot: &SlotOf) -> Result<()> {
    let node = plan.graph.nodes()[number].clone();
    let op = node.op.name();
    for launch in &variant.launches {
        let mut bindings = vec![];
        for bind in &launch.bindings {
            let of_value = |v: crate::ops::Value| {
                (
                    plan.places[v.index()].expect("values of a live node have places"),
                    padded_bytes(plan.graph.kind(v)),
                )
            };
            let (place, size_bytes) = match *bind {
                Bind::Input(i) => of_value(node.inputs[i]),
                Bind::Output(i) => of_value(node.outputs[i]),
                Bind::Scratch(index) => {
                    let place = slot(Owner::Scratch { node: number, index }).expect("scratch was planned");
                    (place, variant.scratch[index].next_multiple_of(4))
                }
            };
            if size_bytes > caps.max_binding_bytes {
                let what =
                    if node.scope.is_empty() { op.to_string() } else { format!("{} {op}", node.scope) };
                let limit_bytes = caps.max_binding_bytes;
                return Err(Error::BindingTooLarge { what, need_bytes: size_bytes, limit_bytes });
            }
            bindings.push(Binding { place, size_bytes });
        }
        if bindings.len() > caps.max_storage_buffers as usize {
            return Err(Error::TooManyBindings { op, need: bindings.len(), limit: caps.max_storage_buffers });
        }
        plan.dispatches.push(Dispatch {
            node: number,
            variant: variant.name.clone(),
            kernel: launch.kernel.clone(),
            bindings,
            params: launch.params.clone(),
            groups: launch.groups,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pointwise::PointwiseEmit;

    fn product() -> Graph {
        let mut graph = Graph::new();
        let (x, y) = (graph.input("x", Type::f32([64, 8])), graph.input("y", Type::f32([64, 8])));
        let z = graph.within("layer.3", |graph| graph.mul(x, y)).unwrap();
        graph.output("z", z);
        graph
    }

    #[test]
    fn a_binding_over_the_limit_is_an_error_that_names_what_and_how_much() {
        let caps = |max_binding_bytes| Caps { max_binding_bytes, ..Caps::portable() };
        let planned = |limit| plan(&product(), &Residents::default(), &caps(limit), &mut first_variant);
        assert!(planned(2048).is_ok());
        let error = planned(2047).unwrap_err().to_string();
        for part in ["layer.3 mul", "2048 bytes", "limit of 2047", "hint"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn an_operator_whose_kernels_have_all_failed_is_an_error_that_sends_to_the_doctor() {
        let error =
            plan(&product(), &Residents::default(), &Caps::portable(), &mut |_, _, _| None).unwrap_err();
        assert!(
            error.to_string().contains("mul: every kernel has failed")
                && error.to_string().contains("kiln doctor")
        );
    }
}
