/** Files that the draft uses: sent to the server once, and kept in this browser so that a reload shows them again. */

import { api, ApiError } from "./api.js";

const IMAGE_TYPES = ["image/png", "image/jpeg", "image/webp"];
const TENSOR_TYPE = "application/octet-stream";
const DATABASE = "flux-ext";
const STORE = "files";

/** @type {Map<string, string>} URLs of files by upload. */
const urls = new Map();
/** Uploads that this page has sent, so that the server has them. */
const sent = new Set();

/**
 * Send an image and keep it.
 * @param {Blob} file
 * @param {number} [limit] bytes
 * @returns {Promise<string>} `upload:<sha256>`
 */
export async function addImage(file, limit) {
    if (!IMAGE_TYPES.includes(file.type)) {
        throw new ApiError(`Got ${file.type || "a file of unknown type"}; expected a PNG, JPEG or WebP image.`, 0, []);
    }
    return add(file, file.type, limit);
}

/** Send a tensor file (`.safetensors` or `.npy`) and keep it. */
export async function addTensor(file, limit) {
    return add(new Blob([file], { type: TENSOR_TYPE }), TENSOR_TYPE, limit);
}

/** Return a URL that shows an upload, or `null` if this browser does not have it. */
export async function urlOf(id) {
    if (!urls.has(id)) {
        const blob = await request("readonly", (store) => store.get(id)).catch(() => null);
        if (blob) urls.set(id, URL.createObjectURL(blob));
    }
    return urls.get(id) ?? null;
}

/** Send again what an earlier visit sent, as the server may have dropped it since. */
export async function ensureSent(ids) {
    for (const id of ids) {
        if (sent.has(id)) continue;
        const blob = await request("readonly", (store) => store.get(id)).catch(() => null);
        if (blob) await api.upload(blob, blob.type);
        sent.add(id);
    }
}

/** Find every upload that a value names. */
export function uploadsIn(value) {
    if (typeof value === "string") return value.startsWith("upload:") ? [value] : [];
    if (value === null || typeof value !== "object") return [];
    return [...new Set(Object.values(value).flatMap(uploadsIn))];
}

async function add(blob, type, limit) {
    if (limit && blob.size > limit) {
        throw new ApiError(
            `Got a file of ${megabytes(blob.size)}; the server takes ${megabytes(limit)} at most.`,
            0,
            [],
        );
    }
    const { id } = await api.upload(blob, type);
    sent.add(id);
    urls.set(id, URL.createObjectURL(blob));
    await request("readwrite", (store) => store.put(blob, id)).catch(() => null);
    return id;
}

const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

function request(mode, act) {
    return open().then(
        (database) =>
            new Promise((resolve, reject) => {
                const asked = act(database.transaction(STORE, mode).objectStore(STORE));
                asked.onsuccess = () => resolve(asked.result ?? null);
                asked.onerror = () => reject(asked.error);
            }),
    );
}

/** @type {Promise<IDBDatabase>|null} */
let opened = null;

function open() {
    opened ??= new Promise((resolve, reject) => {
        const asked = indexedDB.open(DATABASE, 1);
        asked.onupgradeneeded = () => asked.result.createObjectStore(STORE);
        asked.onsuccess = () => resolve(asked.result);
        asked.onerror = () => reject(asked.error);
    });
    return opened;
}
