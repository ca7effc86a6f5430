// Asking the center, and hearing from it.

/** Who looks at the page: `{user, role, csrf, users, version}`. */
export const session = { user: null, role: null, csrf: null, users: false, version: "" };

const ROLES = ["view", "operate", "admin"];

export function may(role) {
  return ROLES.indexOf(session.role) >= ROLES.indexOf(role);
}

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function get(path, parameters = {}, signal) {
  return answer(await fetch(url(path, parameters), { signal, headers: { Accept: "application/json" } }));
}

export function url(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== "") query.append(name, value);
  }
  const text = query.toString();
  return `/api/v1${path}${text && `?${text}`}`;
}

export async function send(method, path, body) {
  const headers = { "Content-Type": "application/json" };
  if (session.csrf) headers["X-CSRF-Token"] = session.csrf;
  return answer(await fetch(`/api/v1${path}`, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) }));
}

async function answer(response) {
  const text = await response.text();
  let value = null;
  try {
    value = text && JSON.parse(text);
  } catch {
    throw new Refused(response.status, `the center answered ${response.status} with something that is no JSON`);
  }
  if (!response.ok) {
    if (response.status === 401) window.dispatchEvent(new Event("signed-out"));
    throw new Refused(response.status, value?.error ?? value?.msg ?? `the center answered ${response.status}`);
  }
  return value;
}

export async function loadSession() {
  Object.assign(session, await get("/session"));
  return session;
}

/** Sends a file, and tells how far that is. XMLHttpRequest does, fetch does not. */
export function upload(path, file, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `/api/v1${path}`);
    if (session.csrf) request.setRequestHeader("X-CSRF-Token", session.csrf);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => progress(event.loaded, event.total);
    request.onerror = () => reject(new Refused(0, "the connection to the center broke"));
    request.onload = () => {
      let value = null;
      try {
        value = JSON.parse(request.responseText);
      } catch {
        // What is no JSON has no reason to tell.
      }
      if (request.status < 300) resolve(value);
      else reject(new Refused(request.status, value?.error ?? `the center answered ${request.status}`));
    };
    request.send(file);
  });
}

/** Listens to the center until `close` is called. The browser connects again by itself. */
export function listen(parameters, handlers) {
  const source = new EventSource(url("/stream", parameters));
  for (const [name, handle] of Object.entries(handlers)) {
    source.addEventListener(name, (event) => handle(JSON.parse(event.data)));
  }
  return { close: () => source.close() };
}
