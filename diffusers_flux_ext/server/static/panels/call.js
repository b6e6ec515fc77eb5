/** The call's arguments: the prompt beneath the canvas, the settings, and the images to start from. */

import { fill, h } from "../core/dom.js";
import { createField, createFields } from "../form/field.js";
import { panel } from "./panel.js";

/** What is in sight; everything else stands behind "More settings". */
const FIRST = {
    negative_prompt: "Negative prompt",
    width: "Width",
    height: "Height",
    num_inference_steps: "Steps",
    num_images_per_prompt: "Images",
    seed: "Seed",
    guidance_scale: "Guidance",
    true_cfg_scale: "True CFG",
};
const FILES = ["image", "region"];

/**
 * @param {import("../form/field.js").Form} form
 * @param {import("../core/catalog.js").Catalog} catalog
 * @param {HTMLElement} promptTarget
 */
export function createCallPanels(form, catalog, promptTarget) {
    const { store } = form;
    const settings = h("div", {});
    const images = h("div", {});
    const settingsPanel = panel("Settings", settings, { open: true, id: "panel-settings" });
    const imagesPanel = panel("Images to start from", images, { id: "panel-images" });

    function build() {
        const pipeline = store.state.pipeline ?? catalog.defaultPipeline;
        const fields = catalog.callFields(pipeline).map(withDefault);
        const prompt = fields.find((each) => each.name === "prompt");
        const files = fields.filter((each) => FILES.includes(each.kind) || each.name === "strength");
        const plain = fields.filter((each) => each !== prompt && !files.includes(each));
        const values = () => store.state.call;
        const sorted = byRank(plain);
        fill(promptTarget, prompt && createField(form, promptField(prompt), "call.prompt", values));
        const first = (field) => field.required || field.name in FIRST;
        fill(settings, createFields(form, sorted, "call", values, { first, foldsHelp: true, opens: false }));
        settings.firstElementChild?.classList.add("in-columns");
        fill(images, createFields(form, files, "call", values, { first: () => true }));
        imagesPanel.element.hidden = !files.length;
    }
    const withDefault = (field) => ({
        ...field,
        title: FIRST[field.name] ?? field.title,
        fallback: catalog.model(store.state.model)?.call?.[field.name] ?? field.fallback,
    });
    store.subscribe((_, change) => change === "reset" && build());
    build();
    return [settingsPanel.element, imagesPanel.element];
}

/** The prompt of the whole image, as a text that may be empty. */
function promptField(field) {
    const text = { kind: "text", single: true, list: false, nullable: false, fallback: "" };
    return {
        ...field,
        ...text,
        title: "The whole image",
        about: "",
        example: "What is all around, such as: a white background",
    };
}

function byRank(fields) {
    const order = Object.keys(FIRST);
    const first = order.map((name) => fields.find((each) => each.name === name)).filter(Boolean);
    return [...first, ...fields.filter((each) => !first.includes(each))];
}
