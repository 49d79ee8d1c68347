"""What the guide asks of grpcurl, for where it is not installed: calls known from nothing but the server's reflection.

    reflect.py -plaintext [-d JSON | -d @] HOST:PORT [list | METHOD]

Proves that the descriptors which a server gives away are all that such a tool needs; of its options it has these only.
"""

import argparse
import json
import sys

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-plaintext", action="store_true", required=True)
    parser.add_argument("-d", default="{}")
    parser.add_argument("address")
    parser.add_argument("method")
    words = parser.parse_args()
    with grpc.insecure_channel(words.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        if words.method == "list":
            print("\n".join(sorted(database.get_services())))
            return
        print(_call(channel, DescriptorPool(database), words.method, sys.stdin.read() if words.d == "@" else words.d))


def _call(channel: grpc.Channel, pool: DescriptorPool, name: str, content: str) -> str:
    service, _, method = name.partition("/")
    found = pool.FindServiceByName(service).methods_by_name[method]
    request, reply = GetMessageClass(found.input_type), GetMessageClass(found.output_type)
    call: grpc.UnaryUnaryMultiCallable[object, object] = channel.unary_unary(
        f"/{name}", request.SerializeToString, reply.FromString
    )
    answer = call(json_format.ParseDict(json.loads(content), request(), descriptor_pool=pool), timeout=30)
    return json_format.MessageToJson(answer, preserving_proto_field_name=True, descriptor_pool=pool)


if __name__ == "__main__":
    main()
