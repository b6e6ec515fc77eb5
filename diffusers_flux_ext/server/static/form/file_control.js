/** Images and tensors: dropped, chosen, pasted, or taken from the last result. */

import { fill, h } from "../core/dom.js";
import { icon } from "../core/icons.js";
import { addImage, addTensor, urlOf } from "../core/images.js";

/**
 * @param {import("../core/schema.js").Field} field
 * @param {import("./field.js").Value} value
 * @param {import("./field.js").Form} form
 * @returns {import("./controls.js").Control}
 */
export function imageControl(field, value, form) {
    const send = (file) => addImage(file, form.options.limits?.upload_bytes);
    const extra = h(
        "button",
        {
            type: "button",
            class: "link-button",
            on: {
                click: async () => {
                    const url = form.lastImage();
                    if (!url) return value.refuse("There is no result yet.");
                    await control.take([await (await fetch(url)).blob()]);
                },
            },
        },
        "Use the last result",
    );
    const control = fileControl(field, value, send, {
        accept: "image/png,image/jpeg,image/webp",
        what: "image",
        extra,
    });
    return control;
}

/** A tensor from a file: `.safetensors` with one tensor, or `.npy`. */
export function tensorControl(field, value, form) {
    const send = (file) => addTensor(file, form.options.limits?.upload_bytes);
    return fileControl(field, value, send, { accept: ".safetensors,.npy", what: "tensor", extra: null });
}

function fileControl(field, value, send, { accept, what, extra }) {
    const many = field.list;
    const files = () => [value.get() ?? []].flat();
    const put = (next) => {
        value.set(next.length === 0 ? undefined : many && (next.length > 1 || !field.single) ? next : next[0]);
        show();
    };
    const take = async (taken) => {
        area.classList.add("is-busy");
        try {
            const ids = await Promise.all(taken.map(send));
            put(many ? [...files(), ...ids] : ids.slice(0, 1));
        } catch (error) {
            value.refuse(error.message);
        } finally {
            area.classList.remove("is-busy");
        }
    };
    const input = h("input", {
        type: "file",
        id: value.id,
        accept,
        multiple: many,
        class: "file-input",
        on: { change: () => take([...input.files]).then(() => (input.value = "")) },
    });
    const thumbs = h("div", { class: "thumbs" });
    const area = h(
        "div",
        { class: "drop", on: dropListeners(take, () => area) },
        thumbs,
        input,
        h(
            "p",
            { class: "drop-text" },
            icon("image"),
            `Drop ${many ? `${what}s` : `an ${what}`.replace("an t", "a t")} or choose`,
        ),
    );
    const remove = (index) => put(files().filter((_, at) => at !== index));
    const show = () => {
        fill(
            thumbs,
            files().map((file, index) => thumbnail(file, what, () => remove(index))),
        );
        area.classList.toggle("is-filled", files().length > 0);
    };
    show();
    return { element: h("div", {}, area, extra), target: input, take };
}

function dropListeners(take, area) {
    const mark = (on) => area().classList.toggle("is-over", on);
    return {
        dragover: (event) => {
            event.preventDefault();
            mark(true);
        },
        dragleave: () => mark(false),
        drop: (event) => {
            event.preventDefault();
            event.stopPropagation();
            mark(false);
            if (event.dataTransfer.files.length) take([...event.dataTransfer.files]);
        },
        paste: (event) => {
            if (event.clipboardData.files.length) take([...event.clipboardData.files]);
        },
    };
}

function thumbnail(file, what, remove) {
    const image = h("img", { alt: `Chosen ${what}` });
    const text = h("span", { class: "thumb-text" }, what);
    if (what === "image") {
        urlOf(file).then((url) => {
            if (url) image.src = url;
            else image.replaceWith(h("span", { class: "thumb-text" }, "not in this browser"));
        });
    }
    return h(
        "div",
        { class: "thumb" },
        what === "image" ? image : text,
        h(
            "button",
            {
                type: "button",
                class: "icon-button small",
                "aria-label": `Remove this ${what}`,
                on: {
                    click: (event) => {
                        event.stopPropagation();
                        remove();
                    },
                },
            },
            icon("close"),
        ),
    );
}
