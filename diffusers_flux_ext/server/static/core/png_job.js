/** The job that an image of the server carries. */

const KEYWORD = "flux_ext_job";

/**
 * Read the job from a PNG's text.
 * @param {ArrayBuffer} buffer
 * @returns {Promise<any>}
 */
export async function jobInPng(buffer) {
    const bytes = new Uint8Array(buffer);
    const view = new DataView(buffer);
    for (let at = 8; at + 8 <= bytes.length;) {
        const length = view.getUint32(at);
        const type = latin(bytes.subarray(at + 4, at + 8));
        const body = bytes.subarray(at + 8, at + 8 + length);
        const end = body.indexOf(0);
        if (["tEXt", "zTXt", "iTXt"].includes(type) && latin(body.subarray(0, end)) === KEYWORD) {
            return JSON.parse(await textOf(type, body.subarray(end + 1)));
        }
        at += length + 12;
    }
    throw new Error("This image holds no job.");
}

async function textOf(type, body) {
    if (type === "tEXt") return latin(body);
    if (type === "zTXt") return latin(await inflated(body.subarray(1)));
    const isCompressed = body[0] === 1;
    const language = body.indexOf(0, 2);
    const text = body.subarray(body.indexOf(0, language + 1) + 1);
    return new TextDecoder().decode(isCompressed ? await inflated(text) : text);
}

async function inflated(bytes) {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
}

const latin = (bytes) => new TextDecoder("latin1").decode(bytes);
