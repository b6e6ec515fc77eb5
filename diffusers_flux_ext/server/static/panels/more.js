/** The pipeline and its components, memory, and the file of the image. */

import { fill, h } from "../core/dom.js";
import { createFields } from "../form/field.js";
import { panel } from "./panel.js";

/**
 * @param {import("../form/field.js").Form} form
 * @param {import("../core/catalog.js").Catalog} catalog
 */
export function createMorePanels(form, catalog) {
    const { store } = form;
    const select = h(
        "select",
        { id: "pipeline", on: { change: () => choosePipeline(select.value) } },
        [...new Set([catalog.defaultPipeline, ...catalog.pipelines])].map((name) =>
            h("option", { value: name }, name),
        ),
    );
    const inner = h("div", {});
    const pipelineField = form.errors.attach("pipeline", select, (slot) =>
        h(
            "div",
            { class: "field" },
            h("label", { for: select.id }, "Pipeline"),
            select,
            h(
                "p",
                { class: "help" },
                "The default takes every method. Others have arguments of their own in Settings.",
            ),
            slot,
        ),
    );
    const pipelinePanel = panel("Pipeline", [pipelineField, inner], { id: "panel-pipeline" });

    function choosePipeline(name) {
        const known = new Set(catalog.callFields(name).map((each) => each.name));
        const call = Object.fromEntries(Object.entries(store.state.call).filter(([field]) => known.has(field)));
        const pipeline = name === catalog.defaultPipeline ? null : name;
        store.replace({ ...store.state, pipeline, call: { prompt: "", ...call }, components: {} });
        pipelinePanel.element.open = true;
    }
    function build() {
        const name = store.state.pipeline ?? catalog.defaultPipeline;
        select.value = name;
        fill(
            inner,
            section(form, "components", catalog.components(name)),
            section(form, "additions", catalog.additions),
        );
        for (const [section_, body] of Object.entries(bodies)) fill(body, section(form, section_, catalog[section_]));
        pipelinePanel.count(store.state.pipeline ? 1 : 0);
    }
    const bodies = { memory: h("div", {}), output: h("div", {}) };
    store.subscribe((_, change) => change === "reset" && build());
    build();
    const others = Object.entries({ memory: "Memory and speed", output: "File" })
        .filter(([name]) => catalog[name].length)
        .map(([name, title]) => panel(title, bodies[name], { id: `panel-${name}` }).element);
    return { choosePipeline, elements: [pipelinePanel.element, ...others] };
}

function section(form, name, fields) {
    return fields.length ? createFields(form, fields, name, () => form.store.state[name]) : null;
}
