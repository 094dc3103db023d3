"""A gRPC client that knows nothing but an address: it learns the contract by reflection.

Usage: reflection_client.py HOST:PORT EMAIL PASSWORD. Prints what it found and was told, as JSON.
"""

import json
import sys

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

address, email, password = sys.argv[1:]
channel = grpc.insecure_channel(address)
database = ProtoReflectionDescriptorDatabase(channel)
pool = DescriptorPool(database)


def call(rpc, fields, token=None):
    service, name = rpc.split("/")
    method = pool.FindServiceByName(service).FindMethodByName(name)
    request = json_format.ParseDict(fields, GetMessageClass(method.input_type)())
    stub = channel.unary_unary(
        f"/{rpc}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    metadata = [("authorization", f"Bearer {token}")] if token else []
    return json_format.MessageToDict(stub(request, metadata=metadata, timeout=10), preserving_proto_field_name=True)


def code_without_token():
    try:
        call("identity.v1.ProfileService/GetMyProfile", {})
    except grpc.RpcError as error:
        return error.code().name


services = [name for name in database.get_services() if name.startswith("identity.v1.")]
token = call("identity.v1.AuthService/Login", {"email": email, "password": password})["access_token"]
profile = call("identity.v1.ProfileService/GetMyProfile", {}, token)
print(json.dumps({"services": services, "profile": profile, "without_token": code_without_token()}))
