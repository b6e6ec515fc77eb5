/** Where a condition acts: a region of the canvas, or an image as a mask. */

import { fill, h } from "../core/dom.js";
import { imageControl } from "./file_control.js";

const FROM_IMAGE = "image";

/**
 * @param {import("../core/schema.js").Field} field
 * @param {import("./field.js").Value} value
 * @param {import("./field.js").Form} form
 * @returns {import("./controls.js").Control}
 */
export function regionControl(field, value, form) {
    const element = h("div", { class: "region-choice" });
    const target = h("select", { id: value.id });
    const current = () => [value.get() ?? []].flat();
    // A list keeps its other entries, which JSON can hold more of than this control shows.
    const put = (one) => value.set(one === undefined ? undefined : field.single || !field.list ? one : [one]);
    const images = imageControl(
        { ...field, list: false, single: true },
        { ...value, id: `${value.id}-image`, get: imageOf, set: put },
        form,
    );
    images.target.setAttribute("aria-label", `${field.title}: image as a mask`);

    function imageOf() {
        return typeof current()[0] === "string" ? current()[0] : undefined;
    }
    function show() {
        const first = current()[0];
        const chosen = typeof first === "string" ? FROM_IMAGE : (first?.canvas ?? "");
        const regions = form.store.state.regions;
        fill(
            target,
            h("option", { value: "" }, field.required ? "Choose a region" : "none"),
            regions.map((each) => h("option", { value: each.id }, each.name)),
            h("option", { value: FROM_IMAGE }, "an image as a mask"),
        );
        target.value = regions.some((each) => each.id === chosen) || chosen === FROM_IMAGE ? chosen : "";
        images.element.hidden = target.value !== FROM_IMAGE;
    }
    target.addEventListener("focus", show);
    target.addEventListener("change", () => {
        images.element.hidden = target.value !== FROM_IMAGE;
        if (target.value !== FROM_IMAGE) put(target.value ? { canvas: target.value } : undefined);
    });
    show();
    fill(element, target, images.element);
    return { element, target };
}
