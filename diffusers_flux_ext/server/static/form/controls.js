/** Controls for plain values. Each takes a field, how to read and write its value, and the form. */

import { h } from "../core/dom.js";

/**
 * @typedef {import("../core/schema.js").Field} Field
 * @typedef {import("./field.js").Value} Value
 * @typedef {{element: HTMLElement, target?: HTMLElement, isGroup?: boolean}} Control
 * `target` is what is described and focused; a group is labelled by `aria-labelledby`.
 */

/** @param {Field} field @param {Value} value @returns {Control} */
export function textControl(field, value) {
    if (field.list && !field.single) return linesControl(field, value);
    // An empty text is a value where it is the default, or where there is no default.
    const isOptional = !field.required && field.fallback !== "";
    const isLong = /prompt|instruction|text/.test(field.name);
    const node = h(isLong ? "textarea" : "input", {
        id: value.id,
        value: shownText(value.get()),
        placeholder: field.example ?? fallbackText(field),
        rows: isLong ? 2 : null,
        on: { input: () => value.set(node.value === "" && isOptional ? undefined : node.value) },
    });
    return { element: node };
}

/** A number or a text: what reads as a number is one. */
export function scalarControl(field, value) {
    const read = () => {
        const text = node.value.trim();
        value.set(text === "" ? undefined : Number.isFinite(Number(text)) ? Number(text) : text);
    };
    const node = h("input", {
        id: value.id,
        value: shownText(value.get()),
        placeholder: fallbackText(field),
        on: { input: read },
    });
    return { element: node };
}

/** One text on each line. */
function linesControl(field, value) {
    const node = h("textarea", {
        id: value.id,
        rows: 3,
        value: (value.get() ?? []).join("\n"),
        placeholder: "One on each line",
        on: {
            input: () => {
                const lines = node.value
                    .split("\n")
                    .map((line) => line.trim())
                    .filter(Boolean);
                value.set(lines.length ? lines : undefined);
            },
        },
    });
    return { element: node };
}

export function choiceControl(field, value) {
    const current = value.get();
    const choices = [undefined, ...(field.nullable ? [null] : []), ...field.choices];
    const node = h(
        "select",
        { id: value.id, on: { change: () => value.set(choices[node.selectedIndex]) } },
        choices.map((choice) => h("option", { selected: choice === current }, choiceText(choice, field))),
    );
    return { element: node };
}

export function flagControl(field, value) {
    if (field.nullable) return choiceControl({ ...field, choices: [true, false] }, value);
    const node = h("input", {
        type: "checkbox",
        id: value.id,
        checked: value.get() ?? field.fallback ?? false,
        on: { change: () => value.set(node.checked) },
    });
    return { element: node };
}

/** Values that have no control of their own. */
export function jsonControl(field, value) {
    const current = value.get();
    const node = h("textarea", {
        id: value.id,
        rows: 2,
        class: "code",
        spellcheck: "false",
        placeholder: fallbackText(field) || "A JSON value",
        value: current === undefined ? "" : JSON.stringify(current),
        on: { change: () => read() },
    });
    const read = () => {
        if (!node.value.trim()) return value.set(undefined);
        try {
            value.set(JSON.parse(node.value));
        } catch {
            value.refuse(`Got ${node.value.trim()}, which is not JSON. Put texts into "quotes".`);
        }
    };
    return { element: node };
}

function choiceText(choice, { fallback, required }) {
    if (choice === undefined && required) return "Choose one";
    if (choice === undefined)
        return fallback === undefined || fallback === null ? "default" : `default (${spoken(fallback)})`;
    return spoken(choice);
}

const spoken = (value) => ({ null: "none", true: "yes", false: "no" })[String(value)] ?? String(value);

/** Return the text of a default, for an empty control. */
export function fallbackText({ fallback }) {
    if (fallback === undefined || fallback === null || fallback === "") return "";
    return typeof fallback === "object" ? JSON.stringify(fallback) : String(fallback);
}

function shownText(value) {
    return value === undefined || value === null ? "" : typeof value === "string" ? value : JSON.stringify(value);
}
