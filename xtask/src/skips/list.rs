//! The list: facts about machines, and what may be skipped where they hold.
//!
//! What `cargo xtask setup` can install does not belong here: such a machine is meant to run the test.

use super::{Allowed, Fact};

pub const LIST: &[Allowed] = &[
    Allowed {
        on: Fact::NotRoot,
        because: "network namespaces, BPF programs and packages need root",
        tests: &[
            "lab::*",
            "cluster::*",
            "siem::*",
            "deploy::container::*",
            "deploy::install::*",
            "deploy::options::*",
            "deploy::server::*",
            "netpol_trace::kernel::*",
            "lab on kernel *",
        ],
    },
    Allowed {
        on: Fact::NotDebian,
        because: "these programs and kernels are unpacked from Debian's packages",
        tests: &[
            "siem::prometheus::*",
            "siem::rsyslog::*",
            "deploy::container::*",
            "deploy::options::*",
            "lab::rows::switch::*",
            "lab on kernel *",
        ],
    },
    Allowed { on: Fact::NotX86, because: "Debian's cloud kernels are booted on x86_64", tests: &["lab on kernel *"] },
    Allowed {
        on: Fact::NoGo,
        because: "Go builds the API server, kubectl, helm and the enforcers",
        tests: &["cluster programs", "cluster::*", "deploy::*", "siem::otelcol::*"],
    },
    Allowed {
        on: Fact::NoCollector,
        because: "building it takes minutes, which `cargo xtask setup` spends and a test run does not",
        tests: &["siem::otelcol::the_collector_takes_what_the_agent_sends"],
    },
    Allowed {
        on: Fact::NoBuildah,
        because: "images are made by buildah",
        tests: &["image", "deploy::container::*", "deploy::options::*"],
    },
    Allowed {
        on: Fact::SomeTests,
        because: "the image is built for the whole run only",
        tests: &["deploy::container::*", "deploy::options::*"],
    },
    Allowed {
        on: Fact::NoGitHub,
        because: "the RustSec advisory database is a repository on GitHub",
        tests: &["advisories"],
    },
    Allowed { on: Fact::NoBtf, because: "they read this kernel's BTF", tests: &["netpol_trace::kernel::*"] },
    Allowed {
        on: Fact::LinuxBefore(6, 7),
        because: "netkit came with 6.7",
        tests: &[
            "lab::openers::netkit",
            "lab::rows::netkit::netkit_beside_the_tc_hook",
            "lab::rows::netkit::netkit_from_a_pod",
            "lab::rows::netkit::netkit_to_a_pod",
        ],
    },
    Allowed {
        on: Fact::NoModule { name: "netkit", function: "netkit_xmit" },
        because: "kernels are built with netkit or not",
        tests: &[
            "lab::openers::netkit",
            "lab::rows::netkit::netkit_beside_the_tc_hook",
            "lab::rows::netkit::netkit_from_a_pod",
            "lab::rows::netkit::netkit_to_a_pod",
        ],
    },
    Allowed {
        on: Fact::NoModule { name: "act_gact", function: "tcf_gact_act" },
        because: "kernels are built with tc's actions drop and pass or not",
        tests: &["lab::tc_traffic::a_cnis_clsact_filter_keeps_its_verdicts"],
    },
    Allowed {
        on: Fact::LinuxBefore(6, 6),
        because: "TCX, and Open vSwitch's drop reasons, came with 6.6",
        tests: &[
            "lab::rows::programs::tcx_egress",
            "lab::rows::programs::tcx_ingress",
            "lab::rows::switch::ovs_beside_kube_proxy",
            "lab::rows::switch::ovs_flow_drops",
            "lab::tc_traffic::a_cnis_tcx_program_keeps_its_verdicts",
        ],
    },
    Allowed {
        on: Fact::NoModule { name: "openvswitch", function: "ovs_dp_process_packet" },
        because: "kernels are built with Open vSwitch's datapath or not",
        tests: &["lab::rows::switch::ovs_beside_kube_proxy", "lab::rows::switch::ovs_flow_drops"],
    },
    Allowed {
        on: Fact::NoModule { name: "sctp", function: "sctp_rcv" },
        because: "kernels are built with SCTP or not",
        tests: &[
            "lab::rows::sctp::sctp_association_cut",
            "lab::rows::sctp::sctp_init_dropped",
            "lab::rows::sctp::sctp_init_rejected",
        ],
    },
    Allowed {
        on: Fact::LinuxBefore(5, 17),
        because: "a freed packet has a reason from 5.17 on",
        tests: &[
            "lab::rows::others::closed_port",
            "lab::rows::others::full_queue",
            "lab::rows::others::full_socket_buffer",
            "lab::rows::others::hop_limit",
            "lab::rows::others::neighbour_failed",
            "lab::rows::others::no_route",
            "lab::rows::others::reverse_path",
            "lab::rows::programs::cgroup_ingress",
        ],
    },
    Allowed {
        on: Fact::LinuxBefore(5, 16),
        because: "nftables has a hook on a device's egress from 5.16 on",
        tests: &["lab::rows::nftables::netdev_egress"],
    },
    Allowed {
        on: Fact::NfTablesLoaded,
        because: "modules can be loaded late once per boot; the lab on kernel 6.12 does it",
        // A pattern, so that it is never reported as stale: the lab itself loads nf_tables.
        tests: &["lab::late_modules::*"],
    },
    Allowed {
        on: Fact::Vm,
        because: "the virtual machine has neither findmnt nor openssl",
        tests: &["lab::mounts::*", "lab::outputs::otlp_needs_no_certificates_of_the_system"],
    },
];
