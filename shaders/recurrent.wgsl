// recurrent: a = x[t] + weight h, gates and cells of a, the next h; for t from first to last or, in reverse, last to first
//
// lane_per_row: one invocation for each row of the batch, alone with it; several units at a time.
// group_per_row: one workgroup for each row; lanes share the units of a step and meet after it.
//
// The state lies in `saved`, each step writes that of the next one. Matrices come turned: [R, G H], and [H, R] of a projection.
// A dispatch walks the steps from `begin` to `end`, all of them where the driver allows. Rows past the batch are computed as the last one and not stored, so that control flow stays the same in all lanes.

struct Params {
    batch: u32, time: u32, units: u32, states: u32, inputs: u32, whole: u32, saved_row: u32, begin: u32, end: u32,
}

alias Elem = f32;
// 0 tanh, 1 relu, 2 lstm, 3 gru
override CELL: u32 = 0u;
override GATES: u32 = 1u;
override REVERSE: u32 = 0u;
override PROJECTS: u32 = 0u;
override LANES: u32 = 64u;
override ROW_LANES: u32 = 8u;
#paste WIDTH

struct Gates { a: V, b: V, c: V, d: V }
// Where a step reads and writes, in packs.
struct Step { base: u32, next: u32, x: u32, y: u32, last: u32, is_last: bool, live: bool, stores: bool }

// x [B, T, G H], weight [R, G H], bias [G H], projection [H, R], initial and last [B, S], y [B, T, R]
#paste BINDINGS
@group(1) @binding(0) var<uniform> params: Params;

fn sigmoid(x: V) -> V { return V(1.0) / (V(1.0) + exp(-x)); }
fn bent(x: V) -> V { return tanh(clamp(x, V(-15.0), V(15.0))); }
fn time_of(number: u32) -> u32 { return select(number, params.time - 1u - number, REVERSE == 1u); }

// The state's pack k becomes `value`, or holds where the row has ended.
fn keep(step: Step, k: u32, value: V) {
    let at = params.saved_row - params.states + k;
    let kept = select(saved[step.base + at], value, step.live);
    if step.stores {
        y[step.y + k] = Pack(select(V(), value, step.live));
        if step.is_last { last[step.last + k] = Pack(kept); } else { saved[step.next + at] = kept; }
    }
}

fn plain(step: Step, u: u32, g: Gates) {
    let sum = V(x[step.x + u]) + g.a + bias_at(u);
    var h = bent(sum);
    if CELL == 1u { h = max(sum, V()); }
    if step.stores { saved[step.base + u] = h; }
    keep(step, u, h);
}

fn lstm(step: Step, u: u32, g: Gates) {
    let units = params.units;
    let source = step.x + u;
    let i = sigmoid(V(x[source]) + g.a + bias_at(u));
    let f = sigmoid(V(x[source + units]) + g.b + bias_at(u + units));
    let made = bent(V(x[source + 2u * units]) + g.c + bias_at(u + 2u * units));
    let o = sigmoid(V(x[source + 3u * units]) + g.d + bias_at(u + 3u * units));
    let before = saved[step.base + 4u * units + u];
    let c = f * before + i * made;
    let h = o * bent(c);
    let kept = select(before, c, step.live);
    if step.stores {
        let to = step.base + u;
        saved[to] = i;
        saved[to + units] = f;
        saved[to + 2u * units] = made;
        saved[to + 3u * units] = o;
        if PROJECTS == 1u { saved[to + 5u * units] = h; }
        if step.is_last {
            last[step.last + params.states + u] = Pack(kept);
        } else {
            saved[step.next + 4u * units + u] = kept;
        }
    }
    if PROJECTS == 0u { keep(step, u, h); }
}

fn gru(step: Step, u: u32, g: Gates) {
    let units = params.units;
    let source = step.x + u;
    let r = sigmoid(V(x[source]) + g.a + bias_at(u));
    let z = sigmoid(V(x[source + units]) + g.b + bias_at(u + units));
    let q = g.c + bias_at(u + 2u * units);
    let n = bent(V(x[source + 2u * units]) + r * q);
    let before = saved[step.base + 4u * units + u];
    if step.stores {
        let to = step.base + u;
        saved[to] = r;
        saved[to + units] = z;
        saved[to + 2u * units] = n;
        saved[to + 3u * units] = q;
    }
    keep(step, u, n + z * (before - n));
}

// All steps of a row, of whose units this invocation has every `stride`th.
fn walk(row: u32, first: u32, stride: u32, stores: bool) {
    let states_at = params.saved_row - params.states;
    if params.begin == 0u {
        let to = (row * params.time + time_of(0u)) * params.saved_row;
        for (var k = first; k < params.states; k += stride) {
            let value = initial_at(row * params.whole + k);
            if stores { saved[to + states_at + k] = value; }
        }
        if CELL == 2u {
            for (var u = first; u < params.units; u += stride) {
                let value = initial_at(row * params.whole + params.states + u);
                if stores { saved[to + 4u * params.units + u] = value; }
            }
        }
        #paste SYNC
    }
    for (var number = params.begin; number < params.end; number++) {
        let at = row * params.time + time_of(number);
        let is_last = number + 1u == params.time;
        let next = row * params.time + time_of(select(number + 1u, number, is_last));
        let step = Step(
            at * params.saved_row, next * params.saved_row, at * params.inputs, at * params.states,
            row * params.whole, is_last, is_live(row, time_of(number)), stores,
        );
        for (var u = first; u < params.units; u += stride) {
            let g = from_state(step.base + states_at, params.states, u, params.inputs, params.units);
            if CELL == 2u {
                lstm(step, u, g);
            } else if CELL == 3u {
                gru(step, u, g);
            } else {
                plain(step, u, g);
            }
        }
        if PROJECTS == 1u {
            #paste SYNC
            for (var k = first; k < params.states; k += stride) {
                let read = step.base + states_at - params.units;
                keep(step, k, projected(read, params.units, k, params.states, 0u).a);
            }
        }
        #paste SYNC
    }
}

@compute @workgroup_size(ROW_LANES)
fn lane_per_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let row = (group.y * groups.x + group.x) * ROW_LANES + lane.x;
    walk(min(row, params.batch - 1u), 0u, 1u, row < params.batch);
}

@compute @workgroup_size(LANES)
fn group_per_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.batch { return; }
    walk(row, lane.x, LANES, true);
}
