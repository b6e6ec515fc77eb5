/** Controls for numbers: one or several, seeds, numbers by name. */

import { h } from "../core/dom.js";
import { fallbackText } from "./controls.js";

/**
 * @typedef {import("../core/schema.js").Field} Field
 * @typedef {import("./field.js").Value} Value
 */

/** A number, or several with commas between them where a list is accepted. */
export function numberControl(field, value) {
    const node = h("input", {
        id: value.id,
        inputmode: field.integer ? "numeric" : "decimal",
        autocomplete: "off",
        value: [value.get() ?? []].flat().join(", "),
        placeholder: fallbackText(field),
        on: { input: () => read(false), change: () => read(true) },
    });
    const read = (says) => {
        const { wrong, found } = parseNumbers(node.value, field);
        if (!wrong) return value.set(found);
        if (!says) return;
        // What cannot be read stays in the draft as it is, so that the server refuses it as well.
        value.set(node.value);
        value.refuse(wrong);
    };
    return { element: node };
}

/** A seed, or one for each image with commas between them. */
export function seedControl(field, value) {
    const { element } = numberControl({ ...field, integer: true, min: 0 }, value);
    const renew = () => {
        element.value = String(randomSeed());
        element.dispatchEvent(new Event("input", { bubbles: true }));
    };
    const button = h("button", { type: "button", class: "button", on: { click: renew } }, "New seed");
    return { element: h("div", { class: "row" }, element, button), target: element };
}

/** @returns {number} */
function randomSeed() {
    return crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
}

/** Numbers by name: one on each line, such as `brightness: 0.7`. */
export function tableControl(field, value) {
    const example = field.example ?? "brightness: 0.7";
    const node = h("textarea", {
        id: value.id,
        rows: 2,
        placeholder: example,
        value: Object.entries(value.get() ?? {})
            .map(([name, each]) => `${name}: ${[each ?? "none"].flat().join(", ")}`)
            .join("\n"),
        on: { input: () => read(false), change: () => read(true) },
    });
    const read = (says) => {
        const lines = node.value.split("\n").filter((line) => line.trim());
        const rows = lines.map((line) => line.match(/^\s*([^:=]+?)\s*[:=]\s*(.*?)\s*$/));
        const wrong = lines.find(
            (_, index) => !rows[index] || !rows[index][2].split(",").every((each) => Number.isFinite(Number(each))),
        );
        if (wrong === undefined)
            value.set(
                lines.length ? Object.fromEntries(rows.map(([, name, text]) => [name, numbersIn(text)])) : undefined,
            );
        else if (says) value.refuse(`Got ${wrong.trim()}; expected a name and a number, such as ${example}.`);
    };
    return { element: node };
}

function numbersIn(text) {
    const numbers = text.split(",").map(Number);
    return numbers.length === 1 ? numbers[0] : numbers;
}

/**
 * Read one number, or several.
 * @returns {{wrong?: string, found?: number|number[]}}
 */
function parseNumbers(text, { list, single, integer, min, max, title }) {
    const parts = text
        .split(",")
        .map((part) => part.trim())
        .filter(Boolean);
    if (!parts.length) return { found: undefined };
    const numbers = parts.map(Number);
    const wrong = parts.find(
        (_, index) => !Number.isFinite(numbers[index]) || (integer && !Number.isInteger(numbers[index])),
    );
    if (wrong !== undefined) return { wrong: `Got ${wrong}; expected ${integer ? "a whole number" : "a number"}.` };
    if (numbers.length > 1 && !list) return { wrong: `${title} takes one number, got ${numbers.length}.` };
    const low = min !== undefined && numbers.find((each) => each < min);
    if (low !== false && low !== undefined) return { wrong: `Got ${low}; expected ${min} or more.` };
    const high = max !== undefined && numbers.find((each) => each > max);
    if (high !== false && high !== undefined) return { wrong: `Got ${high}; expected ${max} or less.` };
    return { found: numbers.length > 1 || !single ? numbers : numbers[0] };
}
