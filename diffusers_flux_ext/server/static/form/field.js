/** A labelled control for a field of the schema, with its help text and its error. */

import { h, uniqueId } from "../core/dom.js";
import { choiceControl, flagControl, jsonControl, scalarControl, textControl } from "./controls.js";
import { imageControl, tensorControl } from "./file_control.js";
import { foldedHelp, helpOf } from "./help.js";
import { loraControl, moduleControl } from "./module_control.js";
import { numberControl, seedControl, tableControl } from "./number_controls.js";
import { regionControl } from "./region_control.js";

/**
 * @typedef {object} Form What all fields share.
 * @property {any} store
 * @property {any} options What the server offers.
 * @property {import("../core/catalog.js").Catalog} catalog
 * @property {import("./errors.js").Errors} errors
 * @property {() => string|null} lastImage URL of the last result, which can be used as an image.
 *
 * @typedef {object} Value How a control reads and writes its value.
 * @property {() => any} get
 * @property {(value: any) => void} set `undefined` leaves the field out of the job.
 * @property {(message: string) => void} refuse Shows an error at the field.
 * @property {string} id Of the control, for its label.
 */

const CONTROLS = {
    choice: choiceControl,
    flag: flagControl,
    image: imageControl,
    json: jsonControl,
    lora: loraControl,
    module: moduleControl,
    number: numberControl,
    region: regionControl,
    scalar: scalarControl,
    seed: seedControl,
    table: tableControl,
    tensor: tensorControl,
    text: textControl,
};

/**
 * @param {Form} form
 * @param {import("../core/schema.js").Field} field
 * @param {string} place where the value is in the job, such as `call.seed`
 * @param {(makes?: boolean) => Record<string, any>} values the object that holds the value; `makes` makes it if need be
 * @param {boolean} [foldsHelp] whether the help text stands behind a button
 * @param {() => void} [dropped] runs after each change
 * @returns {HTMLElement}
 */
export function createField(form, field, place, values, foldsHelp = false, dropped) {
    if (field.kind === "group") return createGroup(form, field, place, values);
    const value = valueOf(form, field.name, place, values, dropped);
    const control = CONTROLS[field.kind](field, value, form);
    const help = foldsHelp ? foldedHelp(field.about, field.title) : helpOf(field.about);
    const target = control.target ?? control.element;
    if (help.id) target.setAttribute("aria-describedby", help.id);
    // Controls for files cannot say it.
    if (field.required && !control.isGroup && target.type !== "file") target.setAttribute("aria-required", "true");
    const head = h("div", { class: "field-head" }, captionOf(field, value, control), help.button);
    return form.errors.attach(place, target, (slot) =>
        field.kind === "flag" && !field.nullable
            ? h(
                  "div",
                  { class: "field", "data-field": place },
                  h("div", { class: "row" }, control.element, head),
                  help.element,
                  slot,
              )
            : h("div", { class: "field", "data-field": place }, head, control.element, help.element, slot),
    );
}

function captionOf(field, value, control) {
    const caption = [field.title, field.required && h("span", { class: "needed" }, " needed")];
    if (!control.isGroup) return h("label", { for: value.id }, caption);
    control.element.setAttribute("aria-labelledby", `${value.id}-label`);
    return h("span", { class: "label", id: `${value.id}-label` }, caption);
}

/**
 * Put what is asked for first in sight, and the rest behind a summary.
 * @param {Form} form
 * @param {import("../core/schema.js").Field[]} fields
 * @param {string} place
 * @param {() => Record<string, any>} values
 * @param {{first?: (field: any) => boolean, foldsHelp?: boolean, opens?: boolean}} [options] `opens` whether the rest is
 *     in sight as soon as any of it is set
 */
export function createFields(
    form,
    fields,
    place,
    values,
    { first = isRequired, foldsHelp = false, opens = true } = {},
) {
    const make = (field) => createField(form, field, `${place}.${field.name}`, values, foldsHelp);
    const [shown, rest] = [fields.filter(first), fields.filter((each) => !first(each))];
    if (!shown.length || !rest.length) return h("div", { class: "fields" }, fields.map(make));
    const open = opens && rest.some((each) => values()?.[each.name] !== undefined);
    return h(
        "div",
        { class: "fields" },
        shown.map(make),
        h(
            "details",
            { class: "more", open },
            h("summary", {}, "More settings"),
            h("div", { class: "fields" }, rest.map(make)),
        ),
    );
}

const isRequired = (field) => field.required;

/** Fields of an object inside of another one, which is there as soon as anything in it is set. */
function createGroup(form, field, place, values) {
    const inner = (makes = false) => {
        const outer = values(makes);
        if (makes && outer[field.name] == null) outer[field.name] = {};
        return outer?.[field.name];
    };
    const drop = () => {
        if (inner() && !Object.keys(inner()).length) delete values()[field.name];
    };
    const help = helpOf(field.about);
    const fields = field.fields.map((each) => createField(form, each, `${place}.${each.name}`, inner, false, drop));
    return h(
        "fieldset",
        { class: "group", "data-field": place },
        h("legend", {}, field.title),
        help.element,
        fields,
        field.open && openEntries(form, field, place, inner, drop),
    );
}

/** Entries that the schema allows without naming them. */
function openEntries(form, field, place, inner, drop) {
    const named = new Set(field.fields.map((each) => each.name));
    const others = () => Object.entries(inner() ?? {}).filter(([name]) => !named.has(name));
    const write = (given) => {
        for (const [name] of others()) delete inner()[name];
        Object.assign(inner(true), given ?? {});
        drop();
    };
    const value = {
        id: uniqueId("field"),
        get: () => Object.fromEntries(others()),
        set: (given) => form.store.update(() => write(given)),
        refuse: (message) => form.errors.show(`${place}.options`, message),
    };
    const { element } = tableControl({ ...field, example: "threshold: 0.25" }, value);
    return form.errors.attach(`${place}.options`, element, (slot) =>
        h("div", { class: "field" }, h("label", { for: value.id }, "Options"), element, slot),
    );
}

/** @returns {Value} */
function valueOf(form, name, place, values, dropped) {
    return {
        id: uniqueId("field"),
        get: () => values()?.[name],
        set(value) {
            form.store.update(() => {
                if (value === undefined) delete values()?.[name];
                else values(true)[name] = value;
                dropped?.();
            });
            form.errors.show(place, "");
        },
        refuse: (message) => form.errors.show(place, message),
    };
}
