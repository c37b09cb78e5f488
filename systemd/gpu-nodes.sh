#!/bin/sh
# Loads the NVIDIA driver's modules and makes its nodes in /dev, as the first program that uses a card on a desktop does. The
# service may do neither. Run by emdenoised-gpu.service, as root; what exists is left as it is.
set -u

if command -v nvidia-modprobe > /dev/null; then
    nvidia-modprobe -c 0 -u || exit
    number=0
    for card in /proc/driver/nvidia/gpus/*/; do
        [ "$number" = 0 ] || nvidia-modprobe -c "$number"
        number=$((number + 1))
    done
    exit 0
fi

node() {
    [ -e "$1" ] || mknod -m 666 "$1" c "$2" "$3"
}

modprobe -a nvidia nvidia-uvm
[ -d /proc/driver/nvidia ] || { echo "the NVIDIA driver's module cannot be loaded: see \`dmesg\`" >&2; exit 1; }
node /dev/nvidiactl 195 255
number=0
for card in /proc/driver/nvidia/gpus/*/; do
    node "/dev/nvidia$number" 195 "$number"
    number=$((number + 1))
done
major=$(sed -n 's/^ *\([0-9]*\) nvidia-uvm$/\1/p' /proc/devices)
[ -n "$major" ] || { echo "the module nvidia-uvm cannot be loaded: see \`dmesg\`" >&2; exit 1; }
node /dev/nvidia-uvm "$major" 0
node /dev/nvidia-uvm-tools "$major" 1
