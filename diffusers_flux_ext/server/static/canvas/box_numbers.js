/** The box of a region as numbers, so that nothing needs a mouse. */

import { h } from "../core/dom.js";
import { boundsOf } from "./geometry.js";

const SIDES = ["Left", "Top", "Right", "Bottom"];

/**
 * Make the four numbers of a region's box, in percent of the canvas.
 * @param {import("../core/draft.js").Region} region
 * @param {any} regions
 * @param {import("../form/errors.js").Errors} errors
 */
export function boxNumbers(region, regions, errors) {
    const inputs = SIDES.map((side, index) =>
        h("input", {
            type: "number",
            min: 0,
            max: 100,
            step: "any",
            id: `side-${index}-${region.id}`,
            inputmode: "decimal",
            on: { change: read },
        }),
    );
    const note = h("p", { class: "hint" });
    const group = h(
        "div",
        { class: "box-numbers", role: "group" },
        SIDES.map((side, index) => h("label", { for: inputs[index].id }, h("span", {}, side), inputs[index])),
    );
    const element = errors.attach(`regions.${region.id}.area`, inputs[0], (slot) =>
        h("div", { class: "field" }, group, note, slot),
    );

    function read() {
        const box = inputs.map((input) => Number(input.value) / 100);
        const wrong = boxProblem(
            inputs.map((input) => input.value),
            box,
        );
        errors.show(`regions.${region.id}.area`, wrong);
        if (!wrong) regions.setArea(region.id, { box: box.map((each) => Math.round(each * 10000) / 10000) });
    }
    function update({ area }) {
        const bounds = boundsOf(area);
        inputs.forEach((input, index) => {
            input.disabled = Boolean(area && !area.box);
            if (document.activeElement !== input)
                input.value = bounds ? String(Math.round(bounds[index] * 1000) / 10) : "";
        });
        note.textContent = area
            ? area.box
                ? ""
                : kindOf(area)
            : "Nothing drawn yet: draw it on the canvas, or type a box.";
    }
    update(region);
    return { element, group, update };
}

function boxProblem(texts, [left, top, right, bottom]) {
    const missing = SIDES.filter((_, index) => texts[index] === "" || Number.isNaN(Number(texts[index])));
    if (missing.length === SIDES.length) return "";
    if (missing.length) return `Give ${missing.join(", ").toLowerCase()} as well, in percent of the canvas.`;
    if ([left, top, right, bottom].some((each) => each < 0 || each > 1))
        return "Sides are from 0 to 100 percent of the canvas.";
    if (left >= right) return "The right side must be beyond the left one.";
    return top >= bottom ? "The bottom must be below the top." : "";
}

function kindOf(area) {
    if (area.image) return "A mask from an image: white is inside.";
    if (area.polygon) return `Drawn with the lasso: ${area.polygon.length} points.`;
    return `Painted: ${area.strokes.length} ${area.strokes.length === 1 ? "stroke" : "strokes"}.`;
}
