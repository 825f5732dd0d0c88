"""Holds files of records against the schemas' own definitions: check.py FORMAT FILE...

Prints how many events of each kind are right; exits 1 with the place and what is wrong otherwise.
"""
import csv
import datetime
import ipaddress
import json
import pathlib
import re
import sys
from collections import Counter

HERE = pathlib.Path(__file__).parent


def lines(path):
    for number, line in enumerate(pathlib.Path(path).read_bytes().decode("utf-8").split("\n"), 1):
        if line:
            yield f"{path}:{number}", json.loads(line)


def literal_dollars(schema):
    """fastjsonschema takes every $ for the end of the text, also those in a class of characters."""
    if isinstance(schema, dict):
        escape = lambda text: re.sub(r"\[[^]]*\]", lambda chars: chars[0].replace("$", r"\$"), text)
        is_pattern = lambda key, inner: key == "pattern" and isinstance(inner, str)
        return {key: escape(inner) if is_pattern(key, inner) else literal_dollars(inner) for key, inner in schema.items()}
    return [literal_dollars(inner) for inner in schema] if isinstance(schema, list) else schema


def ocsf(paths):
    """Against OCSF 1.8.0 as its server publishes it: no attribute that a class does not have, no value that an enum does not."""
    import fastjsonschema
    from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema(version="1.8.0"))
    checks = {}
    for where, event in (item for path in paths for item in lines(path)):
        profiles = event["metadata"].get("profiles", [])
        name = schema.lookup_class_name_from_uid(event["class_uid"])
        key = (name, tuple(profiles))
        if key not in checks:
            checks[key] = fastjsonschema.compile(literal_dollars(schema.get_class_schema(name, profiles)))
        checks[key](event)
        assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"], where
        assert event["category_uid"] == event["class_uid"] // 1000, where
        native = event["unmapped"]
        assert (native["id"], native["fingerprint"]) == (event["metadata"]["uid"], event["metadata"]["correlation_uid"]), where
        yield f"{name} {event['activity_name']}"


ECS_ALLOWED = {
    "event.kind": {"alert", "asset", "enrichment", "event", "metric", "state", "pipeline_error", "signal"},
    "event.category": {"configuration", "host", "intrusion_detection", "network", "process"},
    "event.type": {"access", "allowed", "change", "connection", "creation", "deletion", "denied", "end", "error", "info", "protocol", "start"},
    "event.outcome": {"failure", "success", "unknown"},
    "network.direction": {"ingress", "egress", "inbound", "outbound", "internal", "external", "unknown"},
}


def ecs(paths):
    """Against ECS's published list of fields: name, type, array or not, allowed values. What is not ECS's is in netpol_trace."""
    table = (line for line in (HERE / "data/ecs-fields.csv").open() if not line.startswith("#"))
    fields = {name: (kind, form) for name, kind, form in csv.reader(table)}

    def flat(value, prefix=""):
        for key, inner in value.items():
            name = prefix + key
            if isinstance(inner, dict):
                yield from flat(inner, name + ".")
            else:
                yield name, inner

    def right(kind, value):
        if kind in ("keyword", "match_only_text"):
            return isinstance(value, str)
        if kind == "long":
            return isinstance(value, int) and not isinstance(value, bool)
        if kind == "ip":
            return bool(ipaddress.ip_address(value))
        if kind == "date":
            return bool(datetime.datetime.fromisoformat(value[:19]))
        raise ValueError(kind)

    for where, event in (item for path in paths for item in lines(path)):
        own = event.pop("netpol_trace")
        for name, value in flat(event):
            kind, form = fields[name]
            assert isinstance(value, list) == (form == "array"), f"{where}: {name}: {value}"
            for one in value if form == "array" else [value]:
                assert right(kind, one), f"{where}: {name}: {one!r} is no {kind}"
                assert one in ECS_ALLOWED.get(name, {one}), f"{where}: {name}: {one!r}"
        assert own["id"] == event["event"]["id"] and own["fingerprint"] == event["event"]["hash"], where
        yield event["event"]["dataset"]


def requests(request, where):
    """What an OTLP request says, record by record; every field is read as the official types have it."""
    for resource in request.resource_logs:
        names = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
        assert names["service.name"] == "netpol-trace", where
        for scope in resource.scope_logs:
            assert scope.scope.name == "netpol-trace", where
            for record in scope.log_records:
                keys = {pair.key: pair.value for pair in record.attributes}
                native = {pair.key: pair.value for pair in keys["netpol_trace.record"].kvlist_value.values}
                for attribute, field in ("log.record.uid", "id"), ("netpol_trace.fingerprint", "fingerprint"):
                    assert native[field].string_value == keys[attribute].string_value != "", where
                assert record.time_unix_nano and record.body.string_value and record.severity_number, where
                yield record.event_name


def otel(paths):
    """OTLP's JSON, read by protobuf's own JSON reader into the official types."""
    from google.protobuf import json_format
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    for where, event in (item for path in paths for item in lines(path)):
        yield from requests(json_format.ParseDict(event, ExportLogsServiceRequest()), where)


def otlp(paths):
    """Requests as the exporter sent them, a file each."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    for path in paths:
        yield from requests(ExportLogsServiceRequest.FromString(pathlib.Path(path).read_bytes()), path)


def communityid(paths):
    """Lines with a flow and our id of it, against the reference implementation."""
    import communityid as reference

    algorithm = reference.CommunityID()
    for where, flow in (item for path in paths for item in lines(path)):
        ports = (flow["sport"], flow["dport"]) if "sport" in flow else (None, None)
        tuple_ = reference.FlowTuple(flow["protocol"], flow["source"], flow["destination"], *ports)
        want = algorithm.calc(tuple_)
        assert flow["id"] == want, f"{where}: {flow} is {want}"
        yield str(flow["protocol"])


if __name__ == "__main__":
    kinds = Counter(globals()[sys.argv[1]](sys.argv[2:]))
    print(json.dumps(kinds, sort_keys=True))
