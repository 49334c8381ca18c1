// recurrent_gradient: the walk back over a recurrent layer; see recurrent.wgsl for the two ways to share the work
//
// What flows to the state before a step is weight^T times what flows to its product, and of a GRU what passes by. It lies in `now`,
// each invocation with its own units: h first and, of an LSTM, c behind it. A step writes `dx`, then the lanes meet and read it all.

struct Params {
    batch: u32, time: u32, units: u32, states: u32, inputs: u32, whole: u32, saved_row: u32, dx_row: u32,
    begin: u32, end: u32,
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
struct Step { saved: u32, dx: u32, products: u32, now: u32, live: bool, stores: bool }

// weight [G H, R], projection [R, H], up [B, T, R], up_last and now [B, S], dx [B, T, G H (+ R)], products [B, T, G H]
#paste BINDINGS
@group(1) @binding(0) var<uniform> params: Params;

fn bent(x: V) -> V { return tanh(clamp(x, V(-15.0), V(15.0))); }

// Where the row has ended nothing flows, and what flows to the state goes on unchanged.
fn set_dx(step: Step, at: u32, value: V) {
    if step.stores { dx[step.dx + at] = select(V(), value, step.live); }
}
fn set_now(step: Step, at: u32, value: V) {
    if step.stores && step.live { now[step.now + at] = value; }
}

fn plain(step: Step, u: u32, up: V) {
    let h = saved[step.saved + u];
    if CELL == 1u {
        set_dx(step, u, select(V(), up, h > V()));
    } else {
        set_dx(step, u, up * (V(1.0) - h * h));
    }
    set_now(step, u, V());
}

fn lstm(step: Step, u: u32, up: V) {
    let units = params.units;
    let source = step.saved + u;
    let i = saved[source];
    let f = saved[source + units];
    let g = saved[source + 2u * units];
    let o = saved[source + 3u * units];
    let before = saved[source + 4u * units];
    let c = bent(f * before + i * g);
    let dc = now[step.now + params.states + u] + up * o * (V(1.0) - c * c);
    set_dx(step, u, dc * g * i * (V(1.0) - i));
    set_dx(step, u + units, dc * before * f * (V(1.0) - f));
    set_dx(step, u + 2u * units, dc * i * (V(1.0) - g * g));
    set_dx(step, u + 3u * units, up * c * o * (V(1.0) - o));
    set_now(step, params.states + u, dc * f);
    if PROJECTS == 0u { set_now(step, u, V()); }
}

fn gru(step: Step, u: u32, up: V) {
    let units = params.units;
    let source = step.saved + u;
    let r = saved[source];
    let z = saved[source + units];
    let n = saved[source + 2u * units];
    let q = saved[source + 3u * units];
    let before = saved[source + 4u * units];
    let dn = up * (V(1.0) - z) * (V(1.0) - n * n);
    let dr = dn * q * r * (V(1.0) - r);
    let dz = up * (before - n) * z * (V(1.0) - z);
    set_dx(step, u, dr);
    set_dx(step, u + units, dz);
    set_dx(step, u + 2u * units, dn);
    if step.stores {
        set_products(step.products + u, select(V(), dr, step.live));
        set_products(step.products + u + units, select(V(), dz, step.live));
        set_products(step.products + u + 2u * units, select(V(), dn * r, step.live));
    }
    set_now(step, u, up * z);
}

fn walk(row: u32, first: u32, stride: u32, stores: bool) {
    let mine = row * params.whole;
    if params.begin == 0u {
        for (var k = first; k < params.states; k += stride) {
            if stores { now[mine + k] = up_last_at(mine + k); }
        }
        if CELL == 2u {
            for (var u = first; u < params.units; u += stride) {
                let at = mine + params.states + u;
                if stores { now[at] = up_last_at(at); }
            }
        }
    }
    for (var number = params.begin; number < params.end; number++) {
        let t = select(params.time - 1u - number, number, REVERSE == 1u);
        let at = row * params.time + t;
        let step = Step(
            at * params.saved_row, at * params.dx_row, at * params.inputs, mine, is_live(row, t), stores,
        );
        let up = at * params.states;
        let tail = params.inputs;
        if PROJECTS == 1u {
            for (var k = first; k < params.states; k += stride) {
                set_dx(step, tail + k, now[mine + k] + up_at(up + k));
                set_now(step, k, V());
            }
            #paste SYNC
        }
        for (var u = first; u < params.units; u += stride) {
            var flows = V();
            if PROJECTS == 1u {
                flows = through_projection(step.dx + tail, params.states, u, params.units, 0u).a;
            } else {
                flows = now[mine + u] + up_at(up + u);
            }
            if CELL == 2u {
                lstm(step, u, flows);
            } else if CELL == 3u {
                gru(step, u, flows);
            } else {
                plain(step, u, flows);
            }
        }
        #paste SYNC
        let products = select(step.dx, step.products, CELL == 3u);
        for (var k = first; k < params.states; k += stride) {
            let sum = through_weight(products, params.inputs, k, params.states, 0u).a;
            if stores { now[mine + k] += sum; }
        }
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
