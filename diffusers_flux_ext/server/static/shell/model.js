/** The model, and the settings that come with it. */

import { h } from "../core/dom.js";

/**
 * @param {HTMLElement} target
 * @param {any} store
 * @param {import("../core/catalog.js").Catalog} catalog
 */
export function createModelChoice(target, store, catalog) {
    const select = h(
        "select",
        { id: "model", on: { change: () => choose(select.value) } },
        catalog.models.map((each) => h("option", { value: each.name }, each.name)),
    );
    target.append(h("label", { for: "model" }, "Model"), select);
    const choose = (name) => {
        const [before, after] = [defaultCall(catalog.model(store.state.model)), defaultCall(catalog.model(name))];
        // What the user has set stays; what came with the former model goes.
        const kept = Object.entries(store.state.call).filter(
            ([field, value]) => JSON.stringify(value) !== JSON.stringify(before[field]),
        );
        store.replace({ ...store.state, model: name, call: { prompt: "", ...after, ...Object.fromEntries(kept) } });
    };
    const show = () => (select.value = store.state.model);
    store.subscribe((_, change) => change === "reset" && show());
    show();
}

/** Return the call settings of a model. */
export function defaultCall(model) {
    if (!model) return {};
    const [width, height] = model.size ?? [];
    const given = { width, height, num_inference_steps: model.steps, ...model.call };
    return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined && value !== null));
}
