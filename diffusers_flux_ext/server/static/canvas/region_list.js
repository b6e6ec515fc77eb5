/** The list of regions beside the canvas. */

import { fill, h } from "../core/dom.js";
import { icon } from "../core/icons.js";
import { createCard } from "./region_card.js";

const FIRST_BOXES = [
    [0.08, 0.3, 0.46, 0.7],
    [0.54, 0.3, 0.92, 0.7],
    [0.3, 0.04, 0.7, 0.3],
    [0.3, 0.7, 0.7, 0.96],
];

/**
 * @param {HTMLElement} target
 * @param {any} store
 * @param {ReturnType<typeof import("./regions.js").createRegions>} regions
 * @param {import("../form/errors.js").Errors} errors
 * @param {(file: Blob) => Promise<string>} upload
 */
export function createRegionList(target, store, regions, errors, upload) {
    const list = h("ol", { class: "region-list" });
    const empty = h("p", { class: "hint" }, "Drag on the canvas, or add a box, then say what it shows.");
    const add = (area) => {
        const id = regions.add(area);
        cards.get(id)?.focus();
    };
    fill(
        target,
        list,
        empty,
        h(
            "div",
            { class: "row" },
            addButton("Add box", () => add({ box: FIRST_BOXES[store.state.regions.length % FIRST_BOXES.length] })),
            addButton("Add empty", () => add(null)),
        ),
    );
    /** @type {Map<string, ReturnType<typeof createCard>>} */
    let cards = new Map();

    function rebuild() {
        const focused = document.activeElement?.id;
        cards = new Map(
            store.state.regions.map((region) => [region.id, createCard(region, { store, regions, errors, upload })]),
        );
        fill(
            list,
            [...cards.values()].map((card) => card.element),
        );
        empty.hidden = cards.size > 0;
        if (focused && list.querySelector(`#${CSS.escape(focused)}`)) document.getElementById(focused)?.focus();
    }
    store.subscribe((draft, change) => {
        if (change !== "edit") return rebuild();
        for (const region of draft.regions) cards.get(region.id)?.update(region);
    });
    rebuild();
    return {
        focus: (id) => cards.get(id)?.focus(),
        /** Go to the first region, or to what adds one. */
        focusFirst: () => target.querySelector("textarea, button")?.focus(),
    };
}

function addButton(text, act) {
    return h("button", { type: "button", class: "button small", on: { click: act } }, icon("add"), text);
}
