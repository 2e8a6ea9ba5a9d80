#!/bin/bash
# Makes a node of EMR (emr-7.x, Amazon Linux 2023) able to run the preprocessing tasks: bash bootstrap.sh WHEEL
# The wheel's tasks need mrjob alone; torch, Horovod and MPI, which training needs, stay away.
set -euo pipefail
wheel=$1
python=${PYTHON:-python3.11}
sudo dnf install -y python3.11 python3.11-pip
sudo "$python" -m pip install --no-deps "$wheel"
sudo "$python" -m pip install mrjob==0.7.4
# A node that could not run a task must not join the cluster.
cd /
"$python" -c 'import mr.clean, mr.count, mr.encode, native.tokenizer, native.vocabulary'
