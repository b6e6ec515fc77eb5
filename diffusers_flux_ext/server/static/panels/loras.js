/** LoRAs of the server, with weights and what is known of their files. */

import { fill, h } from "../core/dom.js";
import { icon } from "../core/icons.js";
import { panel } from "./panel.js";

/**
 * @param {import("../form/field.js").Form} form
 * @param {import("../core/catalog.js").Catalog} catalog
 */
export function createLorasPanel(form, catalog) {
    const { store, errors } = form;
    const offered = catalog.options.loras ?? [];
    const list = h("div", { class: "cards" });
    const choice = h("select", {
        id: "lora-choice",
        "aria-label": "LoRA to add",
        on: { change: () => add(choice.value) },
    });
    const shown = panel("LoRAs", [list, choice], { open: true, id: "panel-loras" });

    function build() {
        const chosen = store.state.loras;
        fill(
            list,
            chosen.map((lora, index) => card(lora, index)),
        );
        const free = offered.filter((each) => !chosen.some(({ name }) => name === each.name));
        fill(
            choice,
            h("option", { value: "" }, free.length ? "Add a LoRA" : "No further LoRA is offered"),
            free.map((each) => h("option", { value: each.name }, each.name)),
        );
        choice.disabled = !free.length;
        shown.count(chosen.length);
    }
    function add(name) {
        if (!name) return;
        const weight = offered.find((each) => each.name === name)?.weight ?? 1;
        store.update((draft) => draft.loras.push({ name, weight }), "shape");
        document.getElementById(`lora-${name}`)?.focus();
    }
    function remove(index) {
        store.update((draft) => draft.loras.splice(index, 1), "shape");
        choice.focus();
    }
    function card({ name, weight }, index) {
        const known = offered.find((each) => each.name === name);
        const id = `lora-${name}`;
        const set = (value) => store.update((draft) => (draft.loras[index].weight = value));
        const number = h("input", {
            id,
            type: "number",
            step: "any",
            value: String(weight),
            class: "weight",
            on: { input: () => ((range.value = number.value), setFrom(number)) },
        });
        const range = h("input", {
            type: "range",
            min: -1,
            max: 2,
            step: 0.05,
            value: String(weight),
            "aria-label": `Weight of ${name}, coarse`,
            on: { input: () => ((number.value = range.value), setFrom(range)) },
        });
        const setFrom = (input) => {
            const wrong = input.value === "" || !Number.isFinite(Number(input.value));
            errors.show(`loras.${index}`, wrong ? "The weight must be a number, such as 0.8." : "");
            if (!wrong) set(Number(input.value));
        };
        return errors.attach(`loras.${index}`, number, (slot) =>
            h(
                "section",
                { class: "card", "aria-label": `LoRA ${name}` },
                h(
                    "div",
                    { class: "row card-head" },
                    h("h4", {}, name),
                    h(
                        "button",
                        {
                            type: "button",
                            class: "icon-button small",
                            "aria-label": `Remove ${name}`,
                            on: { click: () => remove(index) },
                        },
                        icon("delete"),
                    ),
                ),
                facts(known?.inspect),
                h("div", { class: "row weight-row" }, h("label", { for: id }, "Weight"), range, number),
                slot,
            ),
        );
    }
    store.subscribe((_, change) => change !== "edit" && build());
    build();
    return shown.element;
}

/** What `flux-ext lora inspect` says of a file. */
function facts(inspect) {
    const entries = Object.entries(inspect ?? {})
        .map(([name, value]) => [name, spoken(name, value)])
        .filter(([, text]) => text);
    if (!entries.length) return null;
    return h(
        "dl",
        { class: "facts" },
        entries.map(([name, text]) =>
            h("div", {}, h("dt", {}, LABELS[name] ?? name.replaceAll("_", " ")), h("dd", {}, text)),
        ),
    );
}

const LABELS = { diffusers: "in diffusers", modules: "changes" };

const SPOKEN = {
    size: (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`,
    // How many of a model's modules it changes.
    modules: (parts) =>
        Object.entries(parts)
            .filter(([, [changed]]) => changed)
            .map(([part, [changed, all]]) => `${part.replaceAll("_", " ")}: ${changed} of ${all}`)
            .join(", "),
    kinds: (kinds) => Object.keys(kinds).join(", "),
    ranks: (ranks) => Object.keys(ranks).join(", "),
};

function spoken(name, value) {
    if (value === null || value === undefined) return "";
    if (SPOKEN[name]) return SPOKEN[name](value);
    if (Array.isArray(value)) return value.map((each) => spoken("", each)).join("; ");
    return typeof value === "object" ? JSON.stringify(value) : String(value);
}
