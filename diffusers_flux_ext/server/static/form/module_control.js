/** Modules and LoRAs that a method needs, chosen from those that the server offers. */

import { h } from "../core/dom.js";

/**
 * @param {import("../core/schema.js").Field} field
 * @param {import("./field.js").Value} value
 * @param {import("./field.js").Form} form
 * @returns {import("./controls.js").Control}
 */
export function moduleControl(field, value, form) {
    return offeredControl(
        field,
        value,
        form.catalog.modulesFor(field).map((each) => each.name),
    );
}

/** As `moduleControl`, for LoRAs that are an input of a method; several where a list is accepted. */
export function loraControl(field, value, form) {
    const names = (form.options.loras ?? []).map((each) => each.name);
    return field.list ? severalControl(value, names) : offeredControl(field, value, names);
}

function offeredControl(field, value, names) {
    const current = pathOf(value.get());
    const none = names.length ? (field.required ? "Choose one" : "none") : "The server offers none";
    const known = [...new Set([...names, ...(current ? [current] : [])])];
    const node = h(
        "select",
        { id: value.id, on: { change: () => value.set(node.value ? { path: node.value } : undefined) } },
        h("option", { value: "" }, none),
        known.map((name) => h("option", { value: name, selected: name === current }, name)),
    );
    if (field.required && !current && names.length === 1) {
        node.value = names[0];
        queueMicrotask(() => value.set({ path: names[0] }));
    }
    return { element: node };
}

function severalControl(value, names) {
    const chosen = new Set([value.get() ?? []].flat().map(pathOf));
    const boxes = names.map((name) => {
        const box = h("input", {
            type: "checkbox",
            checked: chosen.has(name),
            on: {
                change: () => {
                    if (box.checked) chosen.add(name);
                    else chosen.delete(name);
                    value.set(chosen.size ? [...chosen].map((path) => ({ path })) : undefined);
                },
            },
        });
        return h("label", { class: "check" }, box, name);
    });
    const element = h(
        "div",
        { id: value.id, role: "group", class: "checks" },
        boxes.length ? boxes : h("p", { class: "hint" }, "The server offers none."),
    );
    return { element, isGroup: true };
}

const pathOf = (given) => given?.path ?? given;
