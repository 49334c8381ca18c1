// rows: rows read one element or four at a time, and what the lanes of a workgroup that share a row agree on
//
// The importing shader declares Elem and LANES, a power of two. Pasted: WIDTH elements to a Pack in storage and a V in f32.
// Lanes join as a tree: the order is fixed, and every lane leaves with the same result. All lanes must call.

#paste WIDTH

var<workgroup> of_lanes: array<f32, LANES>;

fn sum_over_lanes(lane: u32, mine: f32) -> f32 {
    of_lanes[lane] = mine;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if lane < half { of_lanes[lane] += of_lanes[lane + half]; }
        workgroupBarrier();
    }
    let total = of_lanes[0];
    workgroupBarrier();
    return total;
}

fn largest_over_lanes(lane: u32, mine: f32) -> f32 {
    of_lanes[lane] = mine;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if lane < half { of_lanes[lane] = max(of_lanes[lane], of_lanes[lane + half]); }
        workgroupBarrier();
    }
    let largest = of_lanes[0];
    workgroupBarrier();
    return largest;
}
