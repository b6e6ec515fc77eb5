/** Boxes and points in fractions of the canvas. */

/** @typedef {import("../core/draft.js").Box} Box */

/** The least extent of a box. */
export const LEAST = 0.02;

/** Handles of a box: which of its sides each of them moves. */
export const HANDLES = [
    { name: "nw", x: 0, y: 1 },
    { name: "n", x: null, y: 1 },
    { name: "ne", x: 2, y: 1 },
    { name: "e", x: 2, y: null },
    { name: "se", x: 2, y: 3 },
    { name: "s", x: null, y: 3 },
    { name: "sw", x: 0, y: 3 },
    { name: "w", x: 0, y: null },
];

/** Round to what a job holds: finer than a pixel of any canvas. */
export const rounded = (value) => Math.round(value * 10000) / 10000;

export const clamped = (value) => Math.min(1, Math.max(0, value));

/** Return the box between two points. @returns {Box} */
export function boxBetween([ax, ay], [bx, by]) {
    return [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)].map((each) =>
        rounded(clamped(each)),
    );
}

/** Move a box, and keep it inside of the canvas. @returns {Box} */
function movedBox([left, top, right, bottom], dx, dy) {
    const x = Math.min(1 - right, Math.max(-left, dx));
    const y = Math.min(1 - bottom, Math.max(-top, dy));
    return [left + x, top + y, right + x, bottom + y].map(rounded);
}

/** Move the sides that a handle holds. @returns {Box} */
export function resizedBox(box, handle, [px, py]) {
    const next = [...box];
    if (handle.x !== null) next[handle.x] = clamped(px);
    if (handle.y !== null) next[handle.y] = clamped(py);
    return grown(boxBetween([next[0], next[1]], [next[2], next[3]]));
}

/** Where a handle is. */
export function handlePoint([left, top, right, bottom], handle) {
    const x = handle.x === null ? (left + right) / 2 : handle.x === 0 ? left : right;
    const y = handle.y === null ? (top + bottom) / 2 : handle.y === 1 ? top : bottom;
    return [x, y];
}

/** Return the smallest box around an area, or `null`. @returns {Box|null} */
export function boundsOf(area) {
    if (!area) return null;
    if (area.box) return area.box;
    if (area.image) return [0, 0, 1, 1];
    const strokes = area.strokes?.filter((each) => !each.erase) ?? [{ points: area.polygon, width: 0 }];
    const spans = strokes.flatMap(({ points, width }) => points.map(([x, y]) => [x, y, width / 2]));
    if (!spans.length) return null;
    const side = (pick, at) => clamped(pick(...at));
    return [
        side(
            Math.min,
            spans.map(([x, , r]) => x - r),
        ),
        side(
            Math.min,
            spans.map(([, y, r]) => y - r),
        ),
        side(
            Math.max,
            spans.map(([x, , r]) => x + r),
        ),
        side(
            Math.max,
            spans.map(([, y, r]) => y + r),
        ),
    ];
}

/** Move an area by fractions; boxes stay inside of the canvas. */
export function movedArea(area, dx, dy) {
    const shift = ([x, y]) => [rounded(x + dx), rounded(y + dy)];
    if (area.box) return { box: movedBox(area.box, dx, dy) };
    if (area.polygon) return { polygon: area.polygon.map(shift) };
    if (area.strokes) return { strokes: area.strokes.map((each) => ({ ...each, points: each.points.map(shift) })) };
    return area;
}

/** Whether a point is in the box around an area. */
export function isNear(area, [x, y]) {
    const bounds = boundsOf(area);
    return Boolean(bounds) && x >= bounds[0] && x <= bounds[2] && y >= bounds[1] && y <= bounds[3];
}

function grown([left, top, right, bottom]) {
    const wide = Math.max(right, left + LEAST);
    const high = Math.max(bottom, top + LEAST);
    return [Math.min(left, 1 - LEAST), Math.min(top, 1 - LEAST), Math.min(1, wide), Math.min(1, high)].map(rounded);
}
