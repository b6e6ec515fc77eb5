/** One region in the list: its colour, name, prompt and numbers. */

import { h } from "../core/dom.js";
import { icon } from "../core/icons.js";
import { boxNumbers } from "./box_numbers.js";

/**
 * @param {import("../core/draft.js").Region} region
 * @param {any} context `store`, `regions`, `errors` and `upload`
 */
export function createCard(region, context) {
    const { store, regions, errors } = context;
    const set = (values) => regions.set(region.id, values);
    const isSelected = store.state.selected === region.id;
    const labels = createLabels();
    const color = h("input", {
        type: "color",
        value: region.color,
        class: "swatch",
        id: `color-${region.id}`,
        on: { input: () => set({ color: color.value }), change: regions.settle },
    });
    const name = h("input", {
        value: region.name,
        class: "quiet-input",
        id: `name-${region.id}`,
        on: { input: () => set({ name: name.value }), change: regions.settle },
    });
    const prompt = h("textarea", {
        value: region.prompt,
        rows: 2,
        id: `prompt-${region.id}`,
        placeholder: "What is here?",
        on: { input: () => set({ prompt: prompt.value }), change: regions.settle },
    });
    const promptField = errors.attach(`regions.${region.id}.prompt`, prompt, (slot) =>
        h("div", { class: "field" }, prompt, slot),
    );
    const numbers = boxNumbers(region, regions, errors);
    labels.add(color, "Colour of");
    labels.add(name, "Name of");
    labels.add(prompt, "Prompt of");
    labels.add(numbers.group, "Box in percent of");
    const element = h(
        "li",
        {
            class: `region-card${isSelected ? " is-selected" : ""}`,
            "aria-current": isSelected ? "true" : null,
            on: { focusin: () => regions.select(region.id), pointerdown: () => regions.select(region.id) },
        },
        h("div", { class: "row region-head" }, color, name, cardButtons(region, regions, labels)),
        promptField,
        numbers.element,
        maskFile(region, context, labels),
    );
    element.style.setProperty("--color", region.color);
    labels.write(region.name);
    return {
        element,
        focus: () => prompt.focus({ preventScroll: false }),
        update(next) {
            element.style.setProperty("--color", next.color);
            const selected = store.state.selected === next.id;
            element.classList.toggle("is-selected", selected);
            if (selected) element.setAttribute("aria-current", "true");
            else element.removeAttribute("aria-current");
            if (document.activeElement !== prompt) prompt.value = next.prompt;
            labels.write(next.name);
            numbers.update(next);
        },
    };
}

/** Names of controls that hold the name of the region, which may change. */
function createLabels() {
    /** @type {[HTMLElement, string][]} */
    const labels = [];
    return {
        add: (node, words) => labels.push([node, words]),
        write: (name) => labels.forEach(([node, words]) => node.setAttribute("aria-label", `${words} ${name}`)),
    };
}

function cardButtons(region, regions, labels) {
    const button = (name, title, act) => {
        const node = h(
            "button",
            {
                type: "button",
                class: "icon-button small",
                id: `${name}-${region.id}`,
                title,
                on: { click: act },
            },
            icon(name),
        );
        labels.add(node, title);
        return node;
    };
    return h(
        "div",
        { class: "card-buttons" },
        button("up", "Move up", () => regions.reorder(region.id, -1)),
        button("down", "Move down", () => regions.reorder(region.id, 1)),
        button("delete", "Delete", () => regions.remove(region.id)),
    );
}

function maskFile(region, { regions, errors, upload }, labels) {
    const input = h("input", {
        type: "file",
        accept: "image/png,image/jpeg,image/webp",
        class: "sr-only",
        id: `mask-${region.id}`,
        on: { change: () => input.files[0] && take(input.files[0]) },
    });
    const take = (file) =>
        upload(file).then(
            (image) => regions.setArea(region.id, { image }),
            (error) => errors.show(`regions.${region.id}.area`, error.message),
        );
    const label = h(
        "label",
        {
            for: input.id,
            class: "link-button",
            on: {
                dragover: (event) => event.preventDefault(),
                drop: (event) => {
                    event.preventDefault();
                    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
                },
            },
        },
        icon("image"),
        "Mask from an image",
    );
    labels.add(input, "Mask from an image for");
    return h("div", { class: "region-foot" }, input, label);
}
