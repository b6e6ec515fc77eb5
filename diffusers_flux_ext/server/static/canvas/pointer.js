/** Drawing with a mouse, a pen or a finger. */

import { selectedRegion } from "../core/draft.js";
import { clamped, HANDLES, handlePoint, isNear, rounded } from "./geometry.js";
import { GESTURES, resize } from "./gestures.js";
import { HANDLE } from "./marks.js";

/** How near to a handle counts, in CSS pixels; fingers need more. */
const REACH = { mouse: HANDLE + 3, pen: HANDLE + 6, touch: HANDLE + 14 };
const RESIZING = ["select", "box"];
const PAINTING = ["brush", "eraser"];

/** @param {import("./gestures.js").Board} board */
export function listenToPointer(board) {
    const { canvas, view } = board;
    /** @type {import("./gestures.js").Gesture|null} */
    let gesture = null;
    canvas.addEventListener("pointerdown", (event) => {
        if (event.button !== 0 || gesture) return;
        gesture = begin(board, event);
        if (!gesture) return;
        canvas.setPointerCapture(event.pointerId);
        event.preventDefault();
        canvas.focus({ preventScroll: true });
    });
    canvas.addEventListener("pointermove", (event) => {
        const passed = gesture ? (event.getCoalescedEvents?.() ?? []) : [];
        for (const each of passed.length ? passed : [event]) gesture?.move(pointOf(canvas, each));
        view.setBrush(brushAt(board, event));
        canvas.style.cursor = cursorAt(board, event);
    });
    canvas.addEventListener("pointerleave", () => view.setBrush(null));
    for (const name of ["pointerup", "pointercancel"]) {
        canvas.addEventListener(name, () => {
            const ended = gesture;
            gesture = null;
            ended?.end();
        });
    }
}

function begin(board, event) {
    const point = pointOf(board.canvas, event);
    const handle = handleAt(board, point, event.pointerType);
    return handle ? resize(board, handle) : GESTURES[board.brush.tool](board, point, event.pointerType);
}

function pointOf(canvas, event) {
    const at = canvas.getBoundingClientRect();
    const [x, y] = [(event.clientX - at.left) / at.width, (event.clientY - at.top) / at.height];
    return [rounded(clamped(x)), rounded(clamped(y))];
}

function handleAt({ canvas, store, brush }, [px, py], type) {
    const box = selectedRegion(store.state)?.area?.box;
    if (!box || !RESIZING.includes(brush.tool)) return null;
    const reach = REACH[type] ?? REACH.mouse;
    const isInReach = ([x, y]) =>
        Math.abs(x - px) * canvas.clientWidth <= reach && Math.abs(y - py) * canvas.clientHeight <= reach;
    return HANDLES.find((handle) => isInReach(handlePoint(box, handle))) ?? null;
}

function brushAt({ canvas, brush }, event) {
    if (!PAINTING.includes(brush.tool) || event.pointerType === "touch") return null;
    return { at: pointOf(canvas, event), width: brush.width };
}

function cursorAt(board, event) {
    const point = pointOf(board.canvas, event);
    const handle = handleAt(board, point, event.pointerType);
    if (handle) return `${handle.name}-resize`;
    if (PAINTING.includes(board.brush.tool)) return "none";
    if (board.brush.tool !== "select") return "crosshair";
    return board.store.state.regions.some((each) => isNear(each.area, point)) ? "move" : "default";
}
