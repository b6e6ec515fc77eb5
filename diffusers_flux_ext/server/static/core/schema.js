/** What the job's JSON schema says about a field, in the few kinds that the form has controls for. */

/**
 * @typedef {object} Field
 * @property {string} name
 * @property {string} title
 * @property {string} about Help text.
 * @property {"image"|"region"|"tensor"|"module"|"lora"|"seed"|"choice"|"flag"|"number"|"text"|"scalar"|"table"|"group"|"json"} kind
 * @property {boolean} single Whether one value is accepted.
 * @property {boolean} list Whether a list of values is accepted.
 * @property {boolean} nullable
 * @property {boolean} required
 * @property {boolean} integer
 * @property {number|undefined} min
 * @property {number|undefined} max
 * @property {any} fallback The default.
 * @property {any[]} choices
 * @property {string[]} classes Those of a module.
 * @property {Field[]} fields Those of a group.
 * @property {string} [example] What an empty control shows.
 * @property {boolean} open Whether a group takes entries of any name.
 */

const KINDS = ["image", "region", "tensor", "module", "lora", "seed"];

/** Follow references to definitions. */
function deref(node, root) {
    let found = node;
    while (found?.$ref) {
        const target = found.$ref
            .replace(/^#\//, "")
            .split("/")
            .reduce((at, key) => at?.[decodeURIComponent(key)], root);
        found = { ...target, ...without(found, "$ref") };
    }
    return found ?? {};
}

/**
 * Describe a property of an object's schema.
 * @param {string} name
 * @param {any} node
 * @param {any} root
 * @param {boolean} required
 * @returns {Field}
 */
function fieldOf(name, node, root, required = false) {
    const top = deref(node, root);
    const variants = variantsOf(top, root);
    const mark = markIn(variants, root);
    const { kind, singles, lists } = mark ? markedParts(mark, variants, root) : plainParts(variants, root);
    const counted = [...singles, ...lists.flatMap((each) => variantsOf(each.items, root))];
    return {
        name,
        title: wordsOf(name),
        about: top.description ?? "",
        kind,
        single: singles.length > 0,
        list: lists.length > 0,
        nullable: variants.some((each) => each.type === "null"),
        required,
        integer: counted.every((each) => each.type === "integer"),
        min: bound(singles, "minimum", "exclusiveMinimum"),
        max: bound(singles, "maximum", "exclusiveMaximum"),
        fallback: top.default,
        choices: singles.flatMap((each) => each.enum ?? (each.const === undefined ? [] : [each.const])),
        classes: top["x-classes"] ?? singles.flatMap((each) => each["x-classes"] ?? []),
        fields: kind === "group" ? fieldsOf(singles[0], root) : [],
        open: kind === "group" && singles[0].additionalProperties === true,
    };
}

/** Describe all properties of an object's schema, the required ones first. */
export function fieldsOf(node, root) {
    const found = deref(node, root);
    const required = new Set(found.required ?? []);
    const fields = Object.entries(found.properties ?? {}).map(([name, each]) =>
        fieldOf(name, each, root, required.has(name)),
    );
    return [...fields.filter((each) => each.required), ...fields.filter((each) => !each.required)];
}

/** Return what a value may be, flat; what carries a mark of its own is one kind of value, whatever it may look like. */
export function variantsOf(node, root) {
    const found = deref(node, root);
    const inner = isMarked(found, root) ? [] : [...(found.anyOf ?? []), ...(found.oneOf ?? [])];
    return inner.length ? inner.flatMap((each) => variantsOf(each, root)) : [found];
}

/** Whether a node is marked itself: a field also says what its parts, or those of its lists, are marked with. */
function isMarked(node, root) {
    const parts = [...(node.anyOf ?? []), ...(node.oneOf ?? []), ...(node.items ? [node.items] : [])];
    return Boolean(node["x-kind"]) && !parts.some((each) => hasMark(deref(each, root), root));
}

function hasMark(node, root) {
    const parts = [...(node.anyOf ?? []), ...(node.oneOf ?? []), ...(node.items ? [node.items] : [])];
    return Boolean(node["x-kind"]) || parts.some((each) => hasMark(deref(each, root), root));
}

/** Say a name in words: `num_inference_steps` becomes "Num inference steps". */
function wordsOf(name) {
    const words = name.replaceAll("_", " ").trim();
    return words.charAt(0).toUpperCase() + words.slice(1);
}

/** Find the mark of values, also of those in lists. */
function markIn(variants, root) {
    const marks = variants.map((each) => (each.items ? markIn(variantsOf(each.items, root), root) : each["x-kind"]));
    return marks.find((mark) => KINDS.includes(mark));
}

function markedParts(kind, variants, root) {
    const lists = variants.filter((each) => each.items && markIn([each], root));
    return { kind, singles: variants.filter((each) => !each.items && each["x-kind"] === kind), lists };
}

/** Kinds of values that carry no mark. What mixes them, or nests them, is edited as JSON. */
function plainParts(variants, root) {
    const singles = variants.filter((each) => each.type !== "array" && each.type !== "null");
    const lists = variants.filter((each) => each.type === "array");
    const inner = lists.flatMap((each) => variantsOf(each.items ?? {}, root));
    const kinds = new Set([...singles, ...inner].map(simpleKind));
    const [kind] = kinds;
    if (!lists.length && [...kinds].sort().join() === "number,text") return { kind: "scalar", singles, lists };
    const isPlain = kinds.size === 1 && (!lists.length || kind === "number" || kind === "text");
    return isPlain ? { kind, singles, lists } : { kind: "json", singles, lists: [] };
}

function simpleKind(node) {
    if (node.enum || node.const !== undefined) return "choice";
    if (node.type === "object") return node.properties ? "group" : holdsNumbers(node) ? "table" : "json";
    return { boolean: "flag", integer: "number", number: "number", string: "text" }[node.type] ?? "json";
}

function holdsNumbers({ additionalProperties }) {
    return [additionalProperties, ...(additionalProperties?.anyOf ?? [])].some((each) => each?.type === "number");
}

function bound(variants, inclusive, exclusive) {
    const found = variants.map((each) => each[inclusive] ?? each[exclusive]).filter((each) => each !== undefined);
    return found[0];
}

function without(object, key) {
    const { [key]: _, ...rest } = object;
    return rest;
}
