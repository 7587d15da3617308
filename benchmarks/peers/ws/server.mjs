// What a team on node runs: `ws` and `jsonwebtoken`. It checks the token of a handshake, echoes what it is
// sent, and sends to everybody what POST /api/broadcasts asks for. Nothing else.
//
//     SECRET_FILE=... node server.mjs PORT

import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import jwt from "jsonwebtoken";
import { WebSocketServer } from "ws";

const secret = readFileSync(process.env.SECRET_FILE);
const clients = new WebSocketServer({ noServer: true, clientTracking: true });

const server = createServer((request, response) => {
  if (request.method !== "POST") {
    response.writeHead(204).end();
    return;
  }
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    const { topic, event, payload } = JSON.parse(Buffer.concat(parts).toString());
    const message = Buffer.from(JSON.stringify(["1", null, topic, event, payload]));
    for (const client of clients.clients) {
      client.send(message, { binary: false });
    }
    const answer = JSON.stringify({ delivered: clients.clients.size });
    response.writeHead(202, { "Content-Type": "application/json", "Content-Length": answer.length });
    response.end(answer);
  });
});

server.on("upgrade", (request, socket, head) => {
  const token = new URL(request.url, "http://localhost").searchParams.get("token");
  try {
    request.user = jwt.verify(token, secret, { algorithms: ["HS256"] }).sub;
  } catch {
    socket.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    return;
  }
  clients.handleUpgrade(request, socket, head, (client) => {
    client.user = request.user;
    client.on("message", (data, isBinary) => client.send(data, { binary: isBinary }));
    client.on("error", () => client.terminate());
  });
});

server.listen({ host: "127.0.0.1", port: Number(process.argv[2]), backlog: 4096 });
