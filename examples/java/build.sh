#!/usr/bin/env bash
# build.sh OUT: generates the messages from the protos and compiles the examples, with nothing but Debian's packages:
# protobuf-compiler, protobuf-compiler-grpc-java-plugin, libprotobuf-dev, libprotobuf-java, libgrpc-java, libperfmark-java,
# libnetty-java, libnetty-tcnative-java, libnetty-tcnative-jni, and a JDK of 17 or later. Then:
# java -Djava.library.path=OUT -cp 'OUT:/usr/share/java/*' limner.examples.ListModels
set -euo pipefail
here=$(dirname "$0") out=$1
protos=$here/../../protos
mkdir -p "$out/generated"
protoc --proto_path="$protos" --proto_path=/usr/include --java_out="$out/generated" --grpc-java_out="$out/generated" \
  --plugin=protoc-gen-grpc-java=/usr/bin/grpc_java_plugin "$protos"/limner/v1/*.proto "$protos"/google/rpc/*.proto
javac -proc:none -cp '/usr/share/java/*' -sourcepath "$out/generated" -d "$out" "$here"/*.java
# TLS: Debian's netty looks for its library under another name than Debian's package of it has.
cp "/usr/lib/$(uname -m)-linux-gnu/jni/libnetty-tcnative.so" "$out/libnetty_tcnative.so"
