/** What the schema and the options offer, as the panels need it. */

import { fieldsOf, variantsOf } from "./schema.js";

/** What the server decides for all of its jobs. */
const SERVERS_OWN = ["vram_gib", "offload"];

/**
 * @typedef {import("./schema.js").Field} Field
 * @typedef {{type: string, about: string, fields: Field[]}} ConditionType
 * @typedef {ReturnType<typeof createCatalog>} Catalog
 */

/**
 * @param {any} schema the JSON schema of a job
 * @param {any} options what the server offers
 */
export function createCatalog(schema, options) {
    const conditions = new Map(conditionNodes(schema).map((node) => [typeOf(node), conditionOf(node, schema)]));
    const methods = methodsOf(options, conditions);
    const modulesFor = (field) => (options.modules ?? []).filter((each) => fits(each, field));
    const isOffered = (field) => modulesFor(field).length > 0;
    const section = (name) => groupFields(schema.properties[name], schema);
    return {
        options,
        models: options.models ?? [],
        model: (name) => options.models.find((each) => each.name === name) ?? options.models[0],
        /** @type {Map<string, ConditionType>} */
        conditions,
        methods,
        /** Call a condition by its method, where the method has one only. */
        titleOf(type) {
            const method = methods.find((each) => each.conditions.includes(type));
            return method?.conditions.length === 1 ? method.name : type;
        },
        pipelines: pipelinesOf(schema, options),
        modulesFor,
        /** Whether the server has a module for a field; without one there is nothing to choose. */
        isOffered,
        defaultPipeline: schema.properties.pipeline?.default ?? "FluxConditionedPipeline",
        callFields: (pipeline) => perPipeline(schema, "call", pipeline),
        components: (pipeline) => perPipeline(schema, "components", pipeline).filter(isOffered),
        additions: section("additions").filter(isOffered),
        memory: section("memory").filter((each) => !SERVERS_OWN.includes(each.name)),
        output: section("output"),
        isRegion: (type, field) =>
            conditions.get(type)?.fields.some((each) => each.name === field && each.kind === "region") ?? false,
    };
}

/** Every method with its conditions; conditions that no method lists get an entry of their own. */
function methodsOf(options, conditions) {
    const listed = (options.methods ?? []).map((each) => ({
        name: each.name,
        about: each.about ?? "",
        conditions: (each.conditions ?? []).filter((type) => conditions.has(type)),
        pipelines: each.pipelines ?? [],
    }));
    const known = new Set(listed.flatMap((each) => each.conditions));
    const others = [...conditions.values()].filter((each) => !known.has(each.type));
    return [...listed, ...others.map(({ type, about }) => ({ name: type, about, conditions: [type], pipelines: [] }))];
}

/** Whether a module can be what a field takes: by its class if that is known, else by the field's name. */
function fits(module, { name, classes }) {
    if (module.class && classes.length) return classes.includes(module.class);
    return module.fields?.includes(name) ?? false;
}

function pipelinesOf(schema, options) {
    const inSchema = variantsOf(schema.properties.pipeline ?? {}, schema).flatMap((each) => each.enum ?? []);
    return [...new Set([...inSchema, ...(options.methods ?? []).flatMap((each) => each.pipelines ?? [])])];
}

function conditionNodes(schema) {
    const variants = variantsOf(schema.properties.conditions, schema).filter((each) => each.items);
    return variants.flatMap((each) => variantsOf(each.items, schema)).filter((each) => each.properties?.type);
}

function typeOf(node) {
    const type = node.properties.type;
    return type.const ?? type.enum?.[0] ?? type.default ?? node.title;
}

function conditionOf(node, schema) {
    const fields = fieldsOf(node, schema).filter((each) => each.name !== "type");
    return { type: typeOf(node), about: node.description ?? "", fields };
}

function groupFields(node, schema) {
    const group = variantsOf(node ?? {}, schema).find((each) => each.properties);
    return group ? fieldsOf(group, schema) : [];
}

/** Fields of a section that differs between pipelines: `call` of FluxFlexPipeline is the definition FluxFlexPipelineCall. */
function perPipeline(schema, section, pipeline) {
    const suffix = section.charAt(0).toUpperCase() + section.slice(1);
    return groupFields(schema.$defs?.[`${pipeline}${suffix}`] ?? schema.properties[section], schema);
}
