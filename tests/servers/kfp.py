"""KFP's API server, played over HTTP as its client package, kfp_server_api, defines it.

What it is given must be made of the client's own models, fields, types and all, and what it gives back is.
"""

import datetime
import json
import threading
import traceback
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import kfp_server_api
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.kind import submission

API = "/apis/v2beta1/"
_ENUM = pipeline_spec_pb2.ParameterType
TYPES = {
    _ENUM.STRING: str,
    _ENUM.NUMBER_INTEGER: int | float,
    _ENUM.NUMBER_DOUBLE: int | float,
    _ENUM.LIST: list,
}


def conforms(value, kind):
    """Whether a JSON value is of a type as kfp_server_api writes types: a model's name, list[...], str ..."""
    if value is None or kind == "object":
        return True
    if kind.startswith("list["):
        return isinstance(value, list) and all(conforms(item, kind[5:-1]) for item in value)
    if kind.startswith("dict("):
        inner = kind[5:-1].split(", ", 1)[1]
        return isinstance(value, dict) and all(conforms(item, inner) for item in value.values())
    if kind == "datetime":
        return bool(datetime.datetime.fromisoformat(value))
    if kind in ("str", "int", "bool", "float"):
        return isinstance(value, {"str": str, "int": int, "bool": bool, "float": float}[kind])
    model = getattr(kfp_server_api, kind)
    if not model.openapi_types:  # an enumeration
        return value in model.allowable_values
    fields = {model.attribute_map[name]: inner for name, inner in model.openapi_types.items()}
    return isinstance(value, dict) and all(key in fields and conforms(value[key], fields[key]) for key in value)


class Server:
    """An HTTP server in a thread, for as long as the block runs; answers are (status, JSON), or HTML as a text."""

    def __enter__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size)) if size else None
                try:
                    status, said = outer.answer(self.command, self.path, body, self.headers)
                except Exception as error:  # a fault of what was asked
                    status, said = 500, {"code": 13, "message": repr(error)}
                    traceback.print_exc()
                html = isinstance(said, str)
                text = said.encode() if html else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/html" if html else "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()


class KFP(Server):
    """KFP's API server, v2beta1; each look at a run takes it one step further.

    Attributes:
        steps: The states a run goes through, one a look.
        experiments: By id.
        runs: By id.
        recurring: Recurring runs, by id.
        on_run: Called with the id of each run that is made.
    """

    def __init__(self):
        self.steps = ["PENDING", "RUNNING", "SUCCEEDED"]
        self.message = None
        self.experiments, self.runs, self.looks, self.recurring = {}, {}, {}, {}
        self.on_run = lambda run_id: None

    def answer(self, method, path, body, headers):
        url = urlsplit(path)
        match method, url.path.removeprefix(API).split("/"):
            case "GET", ["healthz"]:
                return 200, {"multi_user": False, "pipeline_store": "database"}
            case "GET", ["experiments"]:
                (chosen,) = json.loads(parse_qs(url.query)["filter"][0])["predicates"]
                assert (chosen["operation"], chosen["key"]) == (1, "display_name")  # 1 is EQUALS
                found = [e for e in self.experiments.values() if e["display_name"] == chosen["stringValue"]]
                return 200, {"experiments": found} if found else {}
            case "GET", ["experiments", experiment]:
                return 200, self.experiments[experiment]
            case "POST", ["experiments"]:
                assert conforms(body, "V2beta1Experiment")
                return 200, self.keep(self.experiments, "experiment_id", body)
            case "GET", ["runs"]:
                wanted = parse_qs(url.query)["experiment_id"]
                found = [run for run in self.runs.values() if [run["experiment_id"]] == wanted]
                return 200, {"runs": found, "total_size": len(found)} if found else {}
            case "POST", ["runs"]:
                return self.create(body)
            case "GET", ["runs", run_id] if run_id in self.runs:
                return 200, self.look(run_id)
            case "GET", ["recurringruns"]:
                wanted = parse_qs(url.query)["experiment_id"]
                found = [one for one in self.recurring.values() if [one["experiment_id"]] == wanted]
                return 200, {"recurringRuns": found, "total_size": len(found)} if found else {}
            case "POST", ["recurringruns"]:
                return self.schedule(body)
            case "DELETE", ["recurringruns", recurring_id] if recurring_id in self.recurring:
                del self.recurring[recurring_id]
                return 200, {}
        return 404, {"code": 5, "message": f"{method} {path} not found"}

    def schedule(self, body):
        body["max_concurrency"] = str(body["max_concurrency"])  # JSON of protobuf takes either for an int64
        assert conforms(body, "V2beta1RecurringRun")
        return self.checked(body) or (200, self.keep(self.recurring, "recurring_run_id", body))

    def create(self, body):
        assert conforms(body, "V2beta1Run")
        if refused := self.checked(body):
            return refused
        run = self.keep(self.runs, "run_id", body | {"state": "PENDING"})
        self.on_run(run["run_id"])
        return 200, run

    def checked(self, body):
        """The answer to something that is no pipeline, or has other parameters; None where all is well."""
        assert body["experiment_id"] in self.experiments
        spec = pipeline_spec_pb2.PipelineSpec()
        json_format.ParseDict(body["pipeline_spec"]["pipeline_spec"], spec)
        assert body["pipeline_spec"]["platform_spec"]["platforms"].keys() == {"kubernetes"}
        given, declared = body["runtime_config"]["parameters"], spec.root.input_definitions.parameters
        if unknown := given.keys() - declared.keys():
            return 400, {"code": 3, "message": f"unknown parameters {sorted(unknown)}"}
        for name, parameter in declared.items():
            if name not in given:
                if not parameter.is_optional and not parameter.HasField("default_value"):
                    return 400, {"code": 3, "message": f"parameter {name} is required"}
            elif not isinstance(given[name], TYPES[parameter.parameter_type]):
                return 400, {"code": 3, "message": f"parameter {name} has another type than {given[name]!r}"}
        return None

    def look(self, run_id):
        state = self.steps[min(self.looks.get(run_id, 0), len(self.steps) - 1)]
        self.looks[run_id] = self.looks.get(run_id, 0) + 1
        run = self.runs[run_id]
        run["state"] = state
        tasks = [{"display_name": "root", "state": state}, {"display_name": "validate-data", "state": "SUCCEEDED"}]
        run["run_details"] = {"task_details": [*tasks, {"display_name": "train-tokenizer", "state": state}]}
        if state in submission.ENDED:
            created = datetime.datetime.fromisoformat(run["created_at"])
            run["finished_at"] = (created + datetime.timedelta(seconds=312)).isoformat()
        if state == "FAILED":
            run["error"] = {"code": 9, "message": self.message}
        assert conforms(run, "V2beta1Run")
        return run

    def keep(self, where, key, body):
        now = datetime.datetime.now(datetime.UTC).isoformat()
        entry = {**body, key: str(uuid.uuid4()), "created_at": now}
        where[entry[key]] = entry
        return entry
