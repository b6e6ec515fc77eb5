/** What lies beneath the regions: nothing, the last result, or an image of the draft. */

import { fill, h } from "../core/dom.js";
import { uploadsIn, urlOf } from "../core/images.js";

const LAST = "last";

/**
 * @param {any} store
 * @param {{setBackdrop: (image: CanvasImageSource|null) => void}} view
 * @param {import("../core/catalog.js").Catalog} catalog
 * @param {() => string|null} lastImage
 * @returns {HTMLElement}
 */
export function createBackdropChoice(store, view, catalog, lastImage) {
    const select = h("select", { id: "backdrop", on: { change: () => show(select.value), focus: () => list() } });
    const list = () => {
        const chosen = select.value;
        fill(
            select,
            h("option", { value: "" }, "nothing"),
            lastImage() && h("option", { value: LAST }, "the last result"),
            imagesOf(store.state, catalog).map(({ id, title }) => h("option", { value: id }, title)),
        );
        select.value = [...select.options].some((each) => each.value === chosen) ? chosen : "";
    };
    const show = async (value) =>
        view.setBackdrop(value ? await decoded(value === LAST ? lastImage() : await urlOf(value)) : null);
    list();
    return h("label", { class: "backdrop", for: "backdrop" }, h("span", {}, "Beneath"), select);
}

function imagesOf({ call, conditions }, catalog) {
    const named = (title, values) =>
        Object.entries(values).flatMap(([name, value]) =>
            uploadsIn(value).map((id) => ({ id, title: `${title}${name.replaceAll("_", " ")}` })),
        );
    return [
        ...named("", call),
        ...conditions.flatMap(({ type, values }) => named(`${catalog.titleOf(type)}: `, values)),
    ];
}

async function decoded(url) {
    if (!url) return null;
    const image = new Image();
    image.src = url;
    return image.decode().then(
        () => image,
        () => null,
    );
}
