/** Methods: each condition of the job is a card that is made from its schema. */

import { fill, h } from "../core/dom.js";
import { newId } from "../core/draft.js";
import { icon } from "../core/icons.js";
import { CANVAS_CONDITION } from "../core/job.js";
import { createFields } from "../form/field.js";
import { helpOf, marked } from "../form/help.js";
import { panel } from "./panel.js";

/**
 * @param {import("../form/field.js").Form} form
 * @param {import("../core/catalog.js").Catalog} catalog
 * @param {{choosePipeline: (name: string) => void, drawRegions: () => void}} act
 */
export function createMethodsPanel(form, catalog, { choosePipeline, drawRegions }) {
    const { store } = form;
    const cards = h("div", { class: "cards" });
    const dialog = methodsDialog(catalog, add, choosePipeline);
    const open = h(
        "button",
        { type: "button", class: "button", id: "add-method", on: { click: () => dialog.showModal() } },
        icon("add"),
        "Add a method",
    );
    const shown = panel("Methods", [cards, open, dialog], { open: true, id: "panel-methods" });

    function add(type) {
        dialog.close();
        if (type === CANVAS_CONDITION) return drawRegions();
        const key = newId();
        store.update((draft) => draft.conditions.push({ key, type, values: {} }), "shape");
        build();
        const card = document.getElementById(`condition-${key}`);
        card?.scrollIntoView({ block: "nearest" });
        card?.querySelector("input, select, textarea, button")?.focus();
    }
    function build() {
        const { conditions } = store.state;
        fill(
            cards,
            conditions.map((each) => conditionCard(form, catalog, each, () => remove(each.key))),
        );
        shown.count(conditions.length);
    }
    function remove(key) {
        store.update((draft) => (draft.conditions = draft.conditions.filter((each) => each.key !== key)), "shape");
        build();
        open.focus();
    }
    store.subscribe((_, change) => change === "reset" && build());
    build();
    return shown.element;
}

/** The settings that the painted regions have in common. */
export function createRegionsPanel(form, catalog) {
    const condition = catalog.conditions.get(CANVAS_CONDITION);
    const body = h("div", {});
    const shown = panel("Painted regions", body, { id: "panel-entity" });
    const build = () => {
        const fields = condition.fields.filter((each) => !["prompts", "masks"].includes(each.name));
        fill(
            body,
            createFields(form, fields, "entity", () => form.store.state.entity),
        );
    };
    if (!condition) return null;
    form.store.subscribe((_, change) => change === "reset" && build());
    build();
    return shown.element;
}

function conditionCard(form, catalog, { key, type }, remove) {
    const condition = catalog.conditions.get(type);
    const values = () => form.store.state.conditions.find((each) => each.key === key)?.values;
    const title = catalog.titleOf(type);
    // What a method can do without, and the server does not offer, is nothing to choose.
    const isChoosable = (field) =>
        field.kind !== "module" || field.required || catalog.isOffered(field) || values()?.[field.name];
    const help = helpOf(condition?.about ?? "");
    return h(
        "section",
        { class: "card", id: `condition-${key}`, "aria-label": title },
        h(
            "div",
            { class: "row card-head" },
            h("h4", {}, title),
            h(
                "button",
                { type: "button", class: "icon-button small", "aria-label": `Remove ${title}`, on: { click: remove } },
                icon("delete"),
            ),
        ),
        help.element,
        condition
            ? createFields(form, condition.fields.filter(isChoosable), `conditions.${key}`, values)
            : h("p", { class: "error" }, `This server does not know ${type}.`),
    );
}

function methodsDialog(catalog, add, choosePipeline) {
    const dialog = h("dialog", {
        class: "dialog",
        "aria-labelledby": "methods-title",
        on: { click: (event) => event.target === dialog && dialog.close() },
    });
    const entry = (method) =>
        h(
            "li",
            { class: "method" },
            h("div", {}, h("h4", {}, method.name), h("p", { class: "help" }, marked(method.about))),
            h(
                "div",
                { class: "method-buttons" },
                method.conditions.map((type) =>
                    actionButton(
                        type === CANVAS_CONDITION ? "Draw regions" : `Add ${catalog.titleOf(type)}`,
                        { "data-condition": type },
                        () => add(type),
                    ),
                ),
                method.pipelines.map((name) =>
                    actionButton(`Use ${name}`, { "data-pipeline": name }, () => {
                        dialog.close();
                        choosePipeline(name);
                    }),
                ),
            ),
        );
    return fill(
        dialog,
        h(
            "div",
            { class: "row dialog-head" },
            h("h3", { id: "methods-title" }, "Methods"),
            h(
                "button",
                { type: "button", class: "icon-button", "aria-label": "Close", on: { click: () => dialog.close() } },
                icon("close"),
            ),
        ),
        h("ul", { class: "method-list" }, catalog.methods.map(entry)),
    );
}

function actionButton(text, data, act) {
    return h("button", { type: "button", class: "button small", ...data, on: { click: act } }, text);
}
