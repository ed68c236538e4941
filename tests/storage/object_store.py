"""An object store within this process, as gcsfs shows Cloud Storage: no folders, no renaming, generations, errors."""

import io
import sys
import threading
import types
from typing import ClassVar

import fsspec
from etils.epath.backend import fsspec_backend
from fsspec.spec import AbstractFileSystem


class HttpError(Exception):
    """gcsfs's own: no OSError."""


HttpError.__module__ = "gcsfs.retry"


class Store(AbstractFileSystem):
    """Objects by BUCKET/KEY; only buckets of `buckets` exist.

    Class attributes, as every part of a program makes its own instance:
      objects: key to (bytes, generation, metageneration).
      before: called with the operation (`get`, `put`, `delete`, `list`) and the key before it is done; may raise.
    """

    protocol = ("gs", "s3")
    objects: ClassVar[dict[str, tuple[bytes, int, int]]] = {}
    buckets = ("runs",)
    generation = 0
    lock = threading.RLock()  # of what looks and changes: several processes may ask at once (`over_http`)

    @staticmethod
    def before(operation, key):
        """Nothing goes wrong."""

    @classmethod
    def _strip_protocol(cls, path):
        return str(path).partition("://")[2].rstrip("/") if "://" in str(path) else str(path).strip("/")

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path)
        Store.before("list", path)
        found = {}
        for key, (data, *_versions) in list(Store.objects.items()):
            if key == path:
                found[key] = {"name": key, "size": len(data), "type": "file"}
            elif key.startswith(f"{path}/"):
                child = f"{path}/{key[len(path) + 1 :].split('/')[0]}"
                kind = {"size": len(data), "type": "file"} if child == key else {"size": 0, "type": "directory"}
                found[child] = {"name": child, **kind}
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def info(self, path, **_):
        path = self._strip_protocol(path)
        if path in Store.objects:
            Store.before("get", path)
            data, generation, meta = Store.objects[path]
            versions = {"generation": str(generation), "metageneration": str(meta)}
            return {"name": path, "size": len(data), "type": "file", **versions}
        self.ls(path)
        return {"name": path, "size": 0, "type": "directory"}

    def cat_file(self, path, start=None, end=None, **_):
        path = self._strip_protocol(path)
        Store.before("get", path)
        if path not in Store.objects:
            raise FileNotFoundError(path)
        return Store.objects[path][0][start:end]

    def pipe_file(self, path, value, mode="overwrite", **_):
        path = self._strip_protocol(path)
        Store.before("put", path)
        if path.split("/")[0] not in Store.buckets:
            raise FileNotFoundError(path)
        with Store.lock:
            if mode == "create" and path in Store.objects:
                raise FileExistsError(path)
            Store.generation += 1
            Store.objects[path] = (bytes(value), Store.generation, 1)

    def put_file(self, lpath, rpath, **_):
        with open(lpath, "rb") as file:
            self.pipe_file(rpath, file.read())

    def get_file(self, rpath, lpath, **_):
        data = self.cat_file(rpath)
        with open(lpath, "wb") as file:
            file.write(data)

    def cp_file(self, path1, path2, **_):
        self.pipe_file(path2, self.cat_file(path1))

    def _rm(self, path):
        path = self._strip_protocol(path)
        Store.before("delete", path)
        Store.objects.pop(path, None)

    def mkdir(self, path, create_parents=True, **_):
        """Object stores have no folders."""

    def makedirs(self, path, exist_ok=False):
        """Object stores have no folders."""

    def _open(self, path, mode="rb", **_):
        if mode == "rb":
            return io.BytesIO(self.cat_file(path))
        store = self

        class Writer(io.BytesIO):
            def close(self):
                if not self.closed:
                    store.pipe_file(path, self.getvalue())
                super().close()

        return Writer()

    def call(self, method, path, bucket, key, *, ifGenerationMatch, json=None):  # its name there
        """The conditional requests of a lease."""
        place = f"{bucket}/{key}"
        Store.before({"DELETE": "delete", "PATCH": "patch"}[method], place)
        with Store.lock:
            if place not in Store.objects:
                raise FileNotFoundError(place)
            data, generation, meta = Store.objects[place]
            if ifGenerationMatch not in (None, str(generation)):
                raise FileExistsError(place)
            if method == "DELETE":
                del Store.objects[place]
            else:
                Store.objects[place] = data, generation, meta + 1


def in_place_of_gcsfs(patch, store=Store):
    """Until `patch` (a MonkeyPatch) is undone, gs:// and s3:// lead to `store`, which is returned: an empty one."""
    for module in ("gcsfs", "s3fs"):
        patch.setitem(sys.modules, module, types.ModuleType(module))
    reach_through(patch, store)
    patch.setattr(Store, "objects", {})
    return store


def reach_through(patch, filesystem):
    """Registers a class of fsspec for gs:// and s3://; epath, which keeps the first that it has met, asks again."""
    for name in ("gs", "gcs", "s3"):
        fsspec.register_implementation(name, filesystem, clobber=True)
    patch.setattr(fsspec_backend, "fs", lambda path: fsspec.filesystem(str(path).partition("://")[0]))
