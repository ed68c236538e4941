"""`Store` for programs of other processes: what gcsfs asks of Cloud Storage's JSON API, on the loopback address.

    STORAGE_EMULATOR_HOST=http://127.0.0.1:PORT python -m tests.storage.over_http train --workdir=gs://runs/a ...

is `python -m shike_jax train ...` with that store: through gcsfs where it is installed, else through `Client`. A lease
that nobody renews is taken over after `LEASE_SECONDS` here, not after a minute.
"""

import base64
import contextlib
import hashlib
import http.client
import importlib.util
import json
import os
import re
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fsspec.exceptions import FSTimeoutError

from tests.storage.object_store import HttpError, Store, in_place_of_gcsfs

HOST = "STORAGE_EMULATOR_HOST"
LEASE_SECONDS = 5.0
_PATH = re.compile(r"/(?:download/|upload/)?storage/v1/b/([^/]+)/o(?:/([^/]+))?(?:/rewriteTo/b/([^/]+)/o/([^/]+))?")


class ClientError(Exception):
    """aiohttp's own, for broken connections: no OSError."""


ClientError.__module__ = "aiohttp.client_exceptions"


# --- the server -----------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves the objects of `Store` in this process while the `with` body runs.

    `Store.before` is called before a request is done, `after` once it is: with the same arguments. What `after` returns
    is how much of the answer is sent before the connection breaks, a share of it from 0 on; None: all.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.begun = []  # (place, bytes so far) of uploads in parts

    @staticmethod
    def after(operation, key):
        """Every answer arrives."""

    def handle_error(self, request, client_address):
        """A client that was killed, or did not wait for its answer, is no error."""

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Nothing is printed."""

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        status, content, operation, key, headers = 200, b"{}", "", "", {}
        try:
            found = _PATH.fullmatch(url.path)
            if not found:
                raise NotImplementedError(f"{self.command} {self.path}")
            bucket, key, *target = (urllib.parse.unquote(part) if part else "" for part in found.groups())
            if query.get("uploadType") == "resumable":
                status, headers, operation, key, content = self.part(bucket, query, body)
            else:
                operation, key, content = self.respond(bucket, key, "/".join(target), query, body)
        except (FileNotFoundError, FileExistsError, HttpError, NotImplementedError) as error:
            # Of the first two kinds gcsfs sees the status alone.
            status = {FileNotFoundError: 404, FileExistsError: 412, NotImplementedError: 501}.get(type(error), 503)
            content = json.dumps({"error": {"code": status, "message": str(error)}}).encode()
        part = self.server.after(operation, key)
        if part != 0:
            self.send_response(status)
            for name, value in {"Content-Length": len(content), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content if part is None else content[: int(part * len(content))])
        if part is not None:
            self.close_connection = True

    do_GET = do_POST = do_DELETE = do_PATCH = answer

    def respond(self, bucket, key, target, query, body):
        """(operation, key, content of the answer)."""
        place, store = f"{bucket}/{key}", Store()
        if self.command == "POST" and target != "/":
            store.cp_file(place, target)
            return "put", target, json.dumps({"done": True}).encode()
        if self.command == "POST":  # a message of two parts: JSON, then the bytes
            edge = self.headers["Content-Type"].partition('boundary="')[2].rstrip('"').encode()
            _, about, data, _ = (part.partition(b"\n\n")[2] for part in body.split(b"--" + edge))
            place = f"{bucket}/{json.loads(about)['name']}"
            create = query.get("ifGenerationMatch") == "0"
            store.pipe_file(place, data[:-1], mode="create" if create else "overwrite")
            return "put", place, self.about(place)
        if self.command in ("DELETE", "PATCH"):
            store.call(self.command, "", bucket, key, ifGenerationMatch=query.get("ifGenerationMatch"))
            return self.command.lower(), place, b"{}" if self.command == "DELETE" else self.about(place)
        if not key:
            return "list", bucket, self.listing(bucket, query.get("prefix", ""), query.get("delimiter"))
        if query.get("alt") == "media":
            start, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            return "get", place, store.cat_file(place, int(start), int(end) + 1 if end else None)
        Store.before("get", place)
        return "get", place, self.about(place)

    def part(self, bucket, query, body):
        """(status, headers, operation, key, content) of an upload in parts: of a file that gcsfs has opened."""
        if "upload_id" not in query:
            self.server.begun.append((f"{bucket}/{query['name']}", bytearray()))
            there = f"{self.server.address}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id="
            return 200, {"Location": f"{there}{len(self.server.begun) - 1}"}, "begin", bucket, b"{}"
        place, so_far = self.server.begun[int(query["upload_id"])]
        so_far += body
        if self.headers["Content-Range"].endswith("/*"):
            return 308, {"Range": f"bytes=0-{len(so_far) - 1}"}, "begin", bucket, b""
        Store().pipe_file(place, so_far)
        return 200, {}, "put", place, self.about(place)

    def about(self, place):
        return json.dumps(self.described(place)).encode()

    def described(self, place):
        if place not in Store.objects:
            raise FileNotFoundError(place)
        (data, generation, meta), (bucket, _, key) = Store.objects[place], place.partition("/")
        versions = {"size": len(data), "generation": generation, "metageneration": meta}
        day = "2026-01-01T00:00:00.000Z"
        return {
            "bucket": bucket,
            "name": key,
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
            "timeCreated": day,
            "updated": day,
            **{name: str(value) for name, value in versions.items()},
        }

    def listing(self, bucket, prefix, delimiter):
        Store.before("list", f"{bucket}/{prefix}")
        if bucket not in Store.buckets:
            raise FileNotFoundError(bucket)
        items, prefixes = [], {}
        for place in sorted(Store.objects):
            key = place.removeprefix(f"{bucket}/")
            if place == key or not key.startswith(prefix):
                continue
            below = key[len(prefix) :]
            if delimiter and delimiter in below:
                prefixes[prefix + below.partition(delimiter)[0] + delimiter] = None
            else:
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    items.append(self.described(place))
        return json.dumps({"items": items, "prefixes": list(prefixes)}).encode()


# --- a client where gcsfs is not installed --------------------------------------------------------------------------


class Client(Store):
    """Asks the server at $STORAGE_EMULATOR_HOST, as gcsfs does.

    What breaks or is answered by 5xx is asked again five times; what is late is not.
    """

    timeout = 300.0  # seconds, aiohttp's

    def ask(self, method, path, body=b"", headers=(), **query):
        host, given = urllib.parse.urlsplit(os.environ[HOST]).netloc, {k: v for k, v in query.items() if v is not None}
        url = f"{path}?{urllib.parse.urlencode(given)}"
        for pause in (0.01, 0.02, 0.04, 0.08, 0.16, None):
            connection = http.client.HTTPConnection(host, timeout=self.timeout)
            try:
                connection.request(method, url, body, dict(headers))
                answer = connection.getresponse()
                status, content = answer.status, answer.read()
                failed = HttpError(f"{content.decode()}, {status}") if status >= 500 else None
            except TimeoutError as error:
                raise FSTimeoutError from error
            except (http.client.HTTPException, ConnectionError) as error:
                failed = ClientError(f"{type(error).__name__}: {error}")
            finally:
                connection.close()
            if failed is None:
                break
            if pause is None:
                raise failed
            time.sleep(pause)
        if status in (404, 412):
            raise {404: FileNotFoundError, 412: FileExistsError}[status](path)
        return content

    def at(self, path, kind=""):
        bucket, _, key = self._strip_protocol(path).partition("/")
        return f"{kind}/storage/v1/b/{bucket}/o/{urllib.parse.quote(key, safe='')}"

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path)
        bucket, _, key = path.partition("/")
        answer = self.ask("GET", f"/storage/v1/b/{bucket}/o", prefix=f"{key}/" if key else "", delimiter="/")
        found = json.loads(answer)
        files = [self.entry(bucket, item) for item in found["items"]]
        folders = [
            {"name": f"{bucket}/{name.rstrip('/')}", "size": 0, "type": "directory"} for name in found["prefixes"]
        ]
        if not files and not folders:
            files = [self.entry(bucket, json.loads(self.ask("GET", self.at(path))))]
        return files + folders if detail else [one["name"] for one in files + folders]

    def entry(self, bucket, item):
        versions = {name: item[name] for name in ("generation", "metageneration")}
        return {"name": f"{bucket}/{item['name']}", "size": int(item["size"]), "type": "file", **versions}

    def info(self, path, **_):
        path = self._strip_protocol(path)
        try:
            return self.entry(path.partition("/")[0], json.loads(self.ask("GET", self.at(path))))
        except FileNotFoundError:
            self.ls(path)
        return {"name": path, "size": 0, "type": "directory"}

    def cat_file(self, path, start=None, end=None, **_):
        return self.ask("GET", self.at(path, "/download"), alt="media")[start:end]

    def pipe_file(self, path, value, mode="overwrite", **_):
        bucket, _, key = self._strip_protocol(path).partition("/")
        edge = b"--=between-the-parts="
        body = b"\n".join([edge, b"", json.dumps({"name": key}).encode(), edge, b"", bytes(value), edge + b"--"])
        match = "0" if mode == "create" else None
        headers = {"Content-Type": f'multipart/related; boundary="{edge[2:].decode()}"'}
        url = f"/upload/storage/v1/b/{bucket}/o"
        self.ask("POST", url, body, headers, uploadType="multipart", ifGenerationMatch=match)

    def _rm(self, path):
        with contextlib.suppress(FileNotFoundError):  # as in gcsfs: done by a try whose answer was lost
            self.ask("DELETE", self.at(path))

    def call(self, method, path, bucket, key, *, ifGenerationMatch, json=None):  # its name there
        return self.ask(method, self.at(f"{bucket}/{key}"), ifGenerationMatch=ifGenerationMatch)


if __name__ == "__main__":
    from shike_jax.commands import program
    from shike_jax.storage import lease

    lease.RENEW_SECONDS, lease.LEASE_SECONDS = LEASE_SECONDS / 10, LEASE_SECONDS
    if importlib.util.find_spec("gcsfs") is None:
        in_place_of_gcsfs(pytest.MonkeyPatch(), Client)
    program.entry()
