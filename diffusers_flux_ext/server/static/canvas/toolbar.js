/** The tools above the canvas. */

import { h } from "../core/dom.js";
import { icon } from "../core/icons.js";

const TOOLS = [
    { name: "select", title: "Move and resize", key: "v" },
    { name: "box", title: "Box", key: "b" },
    { name: "brush", title: "Brush", key: "p" },
    { name: "lasso", title: "Lasso", key: "l" },
    { name: "eraser", title: "Eraser", key: "e" },
];
const WIDTHS = { min: 1, max: 40 };

/**
 * @param {{tool: string, width: number}} brush changed in place
 * @param {ReturnType<typeof import("./regions.js").createRegions>} regions
 * @returns {HTMLElement}
 */
export function createToolbar(brush, regions) {
    const tools = TOOLS.map((tool) => toolChoice(tool, brush));
    const width = h("input", {
        type: "range",
        ...WIDTHS,
        value: String(Math.round(brush.width * 100)),
        "aria-label": "Width of the brush, in percent",
        on: { input: () => (brush.width = Number(width.value) / 100) },
    });
    const undo = stepButton("undo", "Undo", regions.undo);
    const redo = stepButton("redo", "Redo", regions.redo);
    const update = () => {
        undo.disabled = !regions.canUndo();
        redo.disabled = !regions.canRedo();
    };
    regions.onSteps(update);
    update();
    listenToToolKeys(tools);
    return h(
        "div",
        { class: "toolbar" },
        h(
            "div",
            { class: "segments", role: "radiogroup", "aria-label": "Tool" },
            tools.map((each) => each.label),
        ),
        h("div", { class: "steps" }, undo, redo),
        h("label", { class: "brush-width" }, h("span", {}, "Brush"), width),
    );
}

function toolChoice({ name, title, key }, brush) {
    const input = h("input", {
        type: "radio",
        name: "tool",
        value: name,
        checked: brush.tool === name,
        on: { change: () => (brush.tool = name) },
    });
    const label = h(
        "label",
        { class: "segment", title: `${title} (${key.toUpperCase()})` },
        input,
        icon(name),
        h("span", { class: "segment-text" }, title),
    );
    return { key, input, label };
}

function stepButton(name, title, act) {
    return h(
        "button",
        { type: "button", class: "icon-button", "aria-label": title, title, on: { click: act } },
        icon(name),
    );
}

/** Choose a tool by its letter, outside of fields. */
function listenToToolKeys(tools) {
    document.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        if (/** @type {Element} */ (event.target).closest("input:not([type=radio]), textarea, select, dialog")) return;
        tools.find((each) => each.key === event.key.toLowerCase())?.input.click();
    });
}
