# shellcheck shell=bash
# A Debian cloud kernel for guests, in the cache; nothing is installed on this machine.
#
#   vm_kernel CACHE SERIES     SERIES: 6.1 or 6.12; sets vm_kernel_dir (vmlinuz, modules/, version)
#   vm_package CACHE NAME      any other package; sets vm_package_dir

vm_kernel() {
    local cache=$1/vm series=$2 package dir
    package=$(vm_kernel_package "$series") || return 1
    dir=$cache/$package
    if ! [[ -e $dir/complete ]]; then
        echo "vm: fetching $package" >&2
        vm_unpack "$dir" "$package" || return 1
        mv "$dir"/unpacked/boot/vmlinuz-* "$dir/vmlinuz"
        basename "$dir"/unpacked/lib/modules/* >"$dir/version"
        busybox depmod -b "$dir/unpacked" "$(cat "$dir/version")"
        touch "$dir/complete"
    fi
    # shellcheck disable=SC2034 # for the caller
    vm_kernel_dir=$dir
}

# vm_unpack DIR NAME: makes DIR anew, with the files of a Debian package in DIR/unpacked
vm_unpack() {
    rm -rf "$1"
    mkdir -p "$1/unpacked"
    (cd "$1" && apt-get -q download "$2" >/dev/null 2>&1) || {
        echo "vm: cannot download $2" >&2
        return 1
    }
    dpkg-deb -x "$1"/*.deb "$1/unpacked" && rm "$1"/*.deb
}

# vm_package CACHE NAME: the files of a Debian package, unpacked in the cache; sets vm_package_dir. Fails where apt has it not.
vm_package() {
    local dir=$1/vm/package-$2
    if ! [[ -e $dir/complete ]]; then
        vm_unpack "$dir" "$2" || return 1
        touch "$dir/complete"
    fi
    # shellcheck disable=SC2034 # for the caller
    vm_package_dir=$dir/unpacked
}

# The newest kernel package of a series that apt knows.
vm_kernel_package() {
    local series=$1 pattern found
    case $series in
    6.1) pattern='^linux-image-6\.1\.0-[0-9]+-cloud-amd64$' ;;
    6.12) pattern='^linux-image-6\.12\.[0-9]+(\+deb12)?-cloud-amd64(-unsigned)?$' ;;
    *)
        echo "vm: no kernel series $series (6.1, 6.12)" >&2
        return 1
        ;;
    esac
    found=$(apt-cache pkgnames linux-image- | grep -E "$pattern" | sort -V | tail -n 1)
    if [[ -z $found ]]; then
        apt-get -q update >/dev/null 2>&1 || true
        found=$(apt-cache pkgnames linux-image- | grep -E "$pattern" | sort -V | tail -n 1)
    fi
    [[ -n $found ]] || {
        echo "vm: apt knows no cloud kernel $series" >&2
        return 1
    }
    echo "$found"
}

# vm_modules DIR TO NAME...: copies modules and what they need, and writes TO/order, the order of loading
vm_modules() {
    local dir=$1 to=$2 version name
    shift 2
    version=$(cat "$dir/version")
    mkdir -p "$to"
    : >"$to/order"
    for name in "$@"; do
        vm_module "$dir/unpacked/lib/modules/$version" "$to" "$name"
    done
}

vm_module() {
    local tree=$1 to=$2 name=$3 line file need
    # Built in, or not there: the guest says so when it misses it.
    line=$(grep -E "/$name\.ko(\.xz)?:" "$tree/modules.dep" | head -n 1) || return 0
    file=${line%%:*}
    # What is named last is needed first.
    for need in $(tr ' ' '\n' <<<"${line#*:}" | tac); do
        vm_copy_module "$tree" "$to" "$need"
    done
    vm_copy_module "$tree" "$to" "$file"
}

vm_copy_module() {
    local tree=$1 to=$2 file=$3 name
    [[ $file == /* ]] || file=$tree/$file
    file=$tree/${file##*/lib/modules/"${tree##*/}"/}
    name=$(basename "$file" .xz)
    [[ -e $to/$name ]] && return
    if [[ $file == *.xz ]]; then busybox unxz -c "$file" >"$to/$name"; else cp "$file" "$to/"; fi
    echo "$name" >>"$to/order"
}
