// Shows an OpenAPI document: operations, schemas, examples as commands. Text is only ever set as text, never as markup.

const METHODS = ["get", "post", "put", "patch", "delete"];
const MINOR = ["head", "options"];

/** Make an element of children: texts and elements. */
function make(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Make inline elements of a text with `code` in it. */
function inline(text) {
  return text.split("`").map((part, index) => (index % 2 ? make("code", {}, part) : part));
}

/** Make paragraphs. */
function paragraphs(text) {
  return text.split("\n\n").map((part) => make("p", {}, ...inline(part)));
}

/** A text as one word of a shell. */
function quoted(text) {
  return /^[\w@%+=:,.\/-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** The document with what it needs to be shown. */
class Description {
  constructor(document) {
    this.document = document;
  }

  /** What a reference leads to, and its name. */
  resolve(item) {
    let name = "";
    let found = item ?? {};
    while (found.$ref) {
      const parts = found.$ref.slice(2).split("/");
      name = parts.at(-1);
      found = parts.reduce((place, part) => place[part], this.document);
    }
    return { name, found };
  }

  /** A few words about a schema. */
  words(schema) {
    const { name, found } = this.resolve(schema);
    if (name) return name;
    if (found.format === "binary") return "bytes";
    if (found.enum) return found.enum.map((value) => JSON.stringify(value)).join(" or ");
    if ("const" in found) return JSON.stringify(found.const);
    if (found.anyOf) return found.anyOf.map((one) => this.words(one)).join(" or ");
    if (found.prefixItems) return `[${found.prefixItems.map((one) => this.words(one)).join(", ")}]`;
    if (found.type === "array") return `list of ${this.words(found.items ?? {})}`;
    return [found.type ?? "anything"].flat().join(" or ");
  }

  /** Bounds and the like. */
  limits(schema) {
    const { found } = this.resolve(schema);
    const names = ["minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "pattern", "format"];
    return names.filter((name) => name in found && found[name] !== "binary").map((name) => `${name} ${found[name]}`);
  }

  /** The members of an object as a table; null for anything else. */
  members(schema) {
    const { found } = this.resolve(schema);
    const rows = Object.entries(found.properties ?? {}).map(([name, member]) => {
      const needed = (found.required ?? []).includes(name);
      const notes = [needed ? null : "may be absent", ...this.limits(member)].filter(Boolean).join("; ");
      const text = member.description ?? this.resolve(member).found.description ?? "";
      return make(
        "tr",
        {},
        make("td", {}, make("code", {}, name)),
        make("td", {}, this.words(member)),
        make("td", {}, ...inline(text), notes ? make("div", { className: "muted small" }, notes) : null),
      );
    });
    return rows.length ? table(["Member", "Type", "Meaning"], rows) : null;
  }
}

function table(names, rows) {
  const head = make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)));
  return make("div", { className: "table" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function example(value) {
  return make("pre", {}, make("code", {}, typeof value === "string" ? value : JSON.stringify(value, null, 2)));
}

function examples(content) {
  if ("example" in content) return [example(content.example)];
  return Object.values(content.examples ?? {}).map((one) => example(one.value));
}

/** The command that sends one kind of body. */
function command(method, url, mediaType, content, fields) {
  const words = ["curl"];
  if (mediaType === "multipart/form-data") {
    const [field, kinds] = fields;
    const kind = kinds.split(", ")[0];
    words.push("-F", `${field}=@${fileName(kind)};type=${kind}`);
  } else if (mediaType) {
    const body = "example" in content ? content.example : null;
    words.push("-H", `Content-Type: ${mediaType}`, "--data-binary");
    words.push(body === null ? `@${fileName(mediaType)}` : typeof body === "string" ? body : JSON.stringify(body));
  } else if (method !== "get") {
    words.push("-X", method.toUpperCase());
  }
  return [...words, url].map(quoted).join(" ");
}

function fileName(mediaType) {
  const ending = mediaType.split("/")[1];
  return `input.${ending === "octet-stream" ? "bin" : ending}`;
}

function requestPart(description, operation, method, url) {
  const body = description.resolve(operation.requestBody).found;
  if (!body.content) return [make("h3", {}, "Command"), example(command(method, url))];
  const parts = [make("h3", {}, "Body")];
  for (const [mediaType, content] of Object.entries(body.content)) {
    const field = Object.keys(content.encoding ?? {})[0];
    const fields = field ? [field, content.encoding[field].contentType] : null;
    const line = make("p", {}, make("code", {}, mediaType), `: ${description.words(content.schema)}`);
    parts.push(line, example(command(method, url, mediaType, content, fields)));
    const members = description.members(content.schema);
    if (members) parts.push(members);
  }
  return parts;
}

function parametersPart(description, parameters) {
  const rows = parameters.map((given) => {
    const { found } = description.resolve(given);
    return make(
      "tr",
      {},
      make("td", {}, make("code", {}, found.name)),
      make("td", {}, found.in),
      make("td", {}, ...inline(found.description ?? ""), ` Example: ${found.example ?? ""}`),
    );
  });
  return rows.length ? [make("h3", {}, "Parameters"), table(["Name", "In", "Meaning"], rows)] : [];
}

function responsePart(description, status, given) {
  const { found } = description.resolve(given);
  const parts = [make("summary", {}, make("strong", {}, status), ` ${found.description}`)];
  const headers = Object.entries(found.headers ?? {}).map(([name, header]) =>
    make("li", {}, make("code", {}, name), ": ", ...inline(description.resolve(header).found.description ?? "")),
  );
  if (headers.length) parts.push(make("p", {}, "Headers:"), make("ul", {}, ...headers));
  for (const [mediaType, content] of Object.entries(found.content ?? {})) {
    parts.push(make("p", {}, make("code", {}, mediaType), `: ${description.words(content.schema)}`), ...examples(content));
    const members = description.members(content.schema);
    if (members && !content.schema.allOf) parts.push(members);
  }
  return make("details", { open: status === "200" }, ...parts);
}

function operationPart(description, path, method, item) {
  const operation = item[method];
  const others = MINOR.filter((name) => item[name]).map((name) => name.toUpperCase());
  const parameters = [...(item.parameters ?? []), ...(operation.parameters ?? [])];
  return make(
    "section",
    { id: operation.operationId, className: "card" },
    make("h2", {}, make("span", { className: "method" }, method.toUpperCase()), " ", make("code", {}, path)),
    make("p", {}, make("strong", {}, operation.summary)),
    ...paragraphs(operation.description ?? ""),
    others.length ? make("p", { className: "muted" }, `Also: ${others.join(", ")}`) : null,
    ...requestPart(description, operation, method, location.origin + path),
    ...parametersPart(description, parameters),
    make("h3", {}, "Answers"),
    ...Object.entries(operation.responses).map(([status, given]) => responsePart(description, status, given)),
  );
}

function schemasPart(description) {
  const parts = Object.entries(description.document.components.schemas).map(([name, schema]) =>
    make(
      "div",
      { id: `schema-${name}` },
      make("h3", {}, make("code", {}, name)),
      ...paragraphs(schema.description ?? ""),
      description.members(schema) ?? make("p", {}, description.words(schema)),
    ),
  );
  return make("section", { id: "schemas", className: "card" }, make("h2", {}, "Types"), ...parts);
}

function show(found) {
  const description = new Description(found);
  document.title = `${found.info.title} · Inference Fleet`;
  document.getElementById("heading").textContent = found.info.title;
  document.getElementById("about").replaceChildren(...paragraphs(found.info.description ?? ""));
  const parts = Object.entries(found.paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => operationPart(description, path, method, item)),
  );
  document.getElementById("operations").replaceChildren(...parts, schemasPart(description));
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

/** Name the services of this host, each with a link to its own description. */
function showServices(services, chosen) {
  const described = services.filter(({ model }) => model);
  const links = described.map(({ name }, index) => {
    const link = make("a", { href: `/docs?service=${encodeURIComponent(name)}` }, name);
    if (name === chosen || (!chosen && index === 0)) link.setAttribute("aria-current", "page");
    return link;
  });
  const list = document.getElementById("services");
  list.replaceChildren(...links);
  list.hidden = links.length < 2;
}

async function json(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path} answers ${response.status}`);
  return response.json();
}

async function start() {
  const chosen = new URLSearchParams(location.search).get("service");
  const path = chosen ? `/openapi/${encodeURIComponent(chosen)}.json` : "/openapi.json";
  document.getElementById("document").href = path;
  // Only for the links: the description is worth showing without them.
  json("/.fleet/services.json").then((services) => showServices(services, chosen), () => {});
  const said = document.getElementById("said");
  try {
    show(await json(path));
    said.hidden = true;
  } catch (error) {
    said.className = "bad";
    said.textContent = `The description cannot be read: ${error.message}.`;
  }
}

start();
