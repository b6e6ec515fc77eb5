/** What a drag on the canvas does with each tool. */

import { selectedRegion } from "../core/draft.js";
import { boxBetween, isNear, LEAST, movedArea, resizedBox } from "./geometry.js";

/** Points of a stroke are at least this far apart, in fractions. */
const SPACING = 0.004;

/**
 * @typedef {object} Board What a gesture works on.
 * @property {HTMLCanvasElement} canvas
 * @property {ReturnType<typeof import("../core/store.js").createStore>} store
 * @property {ReturnType<typeof import("./regions.js").createRegions>} regions
 * @property {ReturnType<typeof import("./view.js").createView>} view
 * @property {{tool: string, width: number}} brush What the toolbar has chosen.
 * @property {(text: string) => void} say
 * @property {(id: string, type: string) => void} drawn Runs when a region was drawn, with the type of the pointer.
 *
 * @typedef {{move: (point: number[]) => void, end: () => void}} Gesture
 * @typedef {(board: Board, start: number[], type: string) => Gesture|null} Begin
 */

/** @type {Record<string, Begin>} */
export const GESTURES = { select: moveRegion, box: drawBox, brush: paint, lasso: drawAround, eraser: erase };

/** @returns {Gesture} */
export function resize({ store, regions }, handle) {
    const { id, area } = selectedRegion(store.state);
    return { move: (point) => regions.preview(id, { box: resizedBox(area.box, handle, point) }), end: regions.settle };
}

function moveRegion({ store, regions }, start) {
    const hit = [...store.state.regions].reverse().find((each) => each.area && isNear(each.area, start));
    if (!hit) return null;
    regions.select(hit.id);
    const area = hit.area;
    return {
        move: (point) => regions.preview(hit.id, movedArea(area, point[0] - start[0], point[1] - start[1])),
        end: regions.settle,
    };
}

function drawBox(board, start, type) {
    const { regions } = board;
    let box = boxBetween(start, start);
    const id = regions.begin({ box }, isFree);
    return {
        move: (point) => regions.preview(id, { box: (box = boxBetween(start, point)) }),
        end: () =>
            finish(board, id, type, box[2] - box[0] >= LEAST && box[3] - box[1] >= LEAST, "Drag to draw a box."),
    };
}

function drawAround(board, start, type) {
    const { regions } = board;
    const points = [start];
    const id = regions.begin({ polygon: [start] }, isFree);
    return {
        move: (point) => {
            if (!isApart(points, point)) return;
            points.push(point);
            regions.preview(id, { polygon: [...points] });
        },
        end: () => finish(board, id, type, points.length >= 3, "Drag around an area."),
    };
}

function paint(board, start, type) {
    return stroke(board, start, type, {});
}

function erase(board, start, type) {
    if (selectedRegion(board.store.state)?.area?.strokes) return stroke(board, start, type, { erase: true });
    board.say("The eraser works on the selected painted region. Change a box by its handles or its numbers.");
    return null;
}

function stroke(board, start, type, extra) {
    const { store, regions, brush } = board;
    const earlier = selectedRegion(store.state)?.area?.strokes ?? [];
    const points = [start];
    const area = () => ({ strokes: [...earlier, { points: [...points], width: brush.width, ...extra }] });
    const id = regions.begin(area(), (found) => isFree(found) || Boolean(found.strokes));
    return {
        move: (point) => {
            if (!isApart(points, point)) return;
            points.push(point);
            regions.preview(id, area());
        },
        end: () => finish(board, id, type, true, ""),
    };
}

function finish({ regions, say, drawn }, id, type, enough, advice) {
    if (!enough) {
        regions.abandon();
        return say(advice);
    }
    regions.settle();
    drawn(id, type);
}

const isFree = (area) => area === null;

function isApart(points, [x, y]) {
    const [lastX, lastY] = points.at(-1);
    return Math.hypot(x - lastX, y - lastY) >= SPACING;
}
