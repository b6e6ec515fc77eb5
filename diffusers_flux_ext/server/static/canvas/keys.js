/** Drawing with the keyboard. */

import { selectedRegion } from "../core/draft.js";
import { boundsOf, HANDLES, movedArea, resizedBox } from "./geometry.js";

const STEP = 0.01;
const STEPS = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
const CORNER = HANDLES.find((each) => each.name === "se");

/**
 * Move the selected region by arrow keys, and the right lower corner of a box with Shift; delete it by Delete.
 * @param {import("./gestures.js").Board} board
 */
export function listenToKeys({ canvas, store, regions }) {
    canvas.addEventListener("keydown", (event) => {
        const region = selectedRegion(store.state);
        const moves = STEPS[event.key] && region?.area && !region.area.image;
        const deletes = region && ["Delete", "Backspace"].includes(event.key);
        if (moves) regions.setArea(region.id, stepped(region.area, STEPS[event.key], event.shiftKey));
        if (deletes) regions.remove(region.id);
        if (moves || deletes) event.preventDefault();
    });
}

/** Undo by Ctrl+Z and redo by Ctrl+Shift+Z or Ctrl+Y, except in fields, which have an undo of their own. */
export function listenToUndo(regions) {
    document.addEventListener("keydown", (event) => {
        const typed = /** @type {Element} */ (event.target).closest("textarea, select, input:not([type=range])");
        if (typed || !(event.ctrlKey || event.metaKey)) return;
        const key = event.key.toLowerCase();
        const act = key === "y" || (key === "z" && event.shiftKey) ? regions.redo : key === "z" ? regions.undo : null;
        if (!act) return;
        event.preventDefault();
        act();
    });
}

function stepped(area, [dx, dy], corner) {
    if (!corner || !area.box) return movedArea(area, dx, dy);
    const [, , right, bottom] = boundsOf(area);
    return { box: resizedBox(area.box, CORNER, [right + dx, bottom + dy]) };
}
