// cache_write: keys[b, position + t] = new_keys[b, t], and so the values, in place; rows past the end are left out
//
// Invocations walk the new rows with the stride of the whole grid, one element or four at a time.

struct Params { count: u32, row: u32, time: u32, capacity: u32, caches: u32 }

alias Elem = f32;
override LANES: u32 = 128u;
#paste WIDTH

@group(0) @binding(0) var<storage, read_write> keys: array<Pack>;         // [B, capacity, row]
@group(0) @binding(1) var<storage, read_write> values: array<Pack>;       // [B, capacity, row]
@group(0) @binding(2) var<storage, read>       new_keys: array<Pack>;     // [B, time, row]
@group(0) @binding(3) var<storage, read>       new_values: array<Pack>;   // [B, time, row]
@group(0) @binding(4) var<storage, read>       position: array<u32>;      // [1], or [B, 2]: each its position, and the number of its cache
@group(1) @binding(0) var<uniform> params: Params;

#paste SEATS

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let stride = groups.x * groups.y * LANES;
    for (var i = (group.y * groups.x + group.x) * LANES + lane.x; i < params.count; i += stride) {
        let t = i / params.row % params.time;
        let seat = seat_of(i / params.row / params.time);
        // Not first + t < capacity: a position near the greatest number must not wrap around.
        if seat.x >= params.capacity || t >= params.capacity - seat.x || seat.y >= params.caches { continue; }
        let at = (seat.y * params.capacity + seat.x + t) * params.row + i % params.row;
        keys[at] = new_keys[i];
        values[at] = new_values[i];
    }
}
