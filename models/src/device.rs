//! Which device computes; never what.

use crate::ModelError;
use candle_core::Device;
use std::{fmt, path::Path, str::FromStr};

/// A device as the user names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA device where there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by its ordinal.
    Cuda(usize),
}

/// A name that is no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown device {0:?}: use auto, cpu, cuda, or cuda:N with N the number of the GPU, from 0")]
pub struct UnknownDevice(String);

impl FromStr for DeviceChoice {
    type Err = UnknownDevice;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownDevice(name.to_owned());
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let ordinal = name.strip_prefix("cuda:").ok_or_else(unknown)?;
                let digits = !ordinal.is_empty() && ordinal.bytes().all(|b| b.is_ascii_digit());
                digits.then(|| ordinal.parse().ok()).flatten().map(Self::Cuda).ok_or_else(unknown)
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// Opens the device of `choice`. For `Auto` without a usable GPU it is the CPU, with a note that says why where a GPU could have
/// been expected: the program was built for one, or the machine shows one.
///
/// # Errors
/// [`ModelError::NoCuda`] if a CUDA device was asked for by name and cannot be used.
pub fn device(choice: DeviceChoice) -> Result<(Device, Option<String>), ModelError> {
    match choice {
        DeviceChoice::Cpu => Ok((Device::Cpu, None)),
        DeviceChoice::Cuda(ordinal) => match cuda(ordinal) {
            Ok(device) => Ok((device, None)),
            Err(why) => Err(ModelError::NoCuda { ordinal, why }),
        },
        DeviceChoice::Auto => match cuda(0) {
            Ok(device) => Ok((device, None)),
            Err(why) => {
                let expected = cfg!(feature = "cuda") || Path::new(NVIDIA_DRIVER).exists();
                Ok((Device::Cpu, expected.then(|| format!("running on the CPU: {why}"))))
            }
        },
    }
}

/// Is there where a driver for NVIDIA's GPUs runs, also inside a container that was given one.
const NVIDIA_DRIVER: &str = "/dev/nvidiactl";

/// The CUDA device of this number, or why there is none.
#[cfg(feature = "cuda")]
fn cuda(ordinal: usize) -> Result<Device, String> {
    // cudarc panics, rather than fails, where the driver's library lacks a symbol that it needs.
    let open = || Device::new_cuda(ordinal);
    match std::panic::catch_unwind(open) {
        Ok(Ok(device)) => Ok(device),
        Ok(Err(error)) => Err(format!("no usable CUDA device {ordinal} ({error})")),
        Err(_) => Err(format!("no usable CUDA device {ordinal} (the driver does not load)")),
    }
}

/// The CUDA device of this number, or why there is none.
#[cfg(not(feature = "cuda"))]
fn cuda(_ordinal: usize) -> Result<Device, String> {
    Err("this program was built without CUDA (build it with --features cuda)".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_auto_cpu_or_a_numbered_gpu_and_nothing_else() {
        let rows = [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ];
        for (name, choice) in rows {
            assert_eq!(name.parse(), Ok(choice));
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        for name in ["", "CPU", "gpu", "cuda:", "cuda:+1", "cuda:-1", "cuda:x", "cuda:99999999999999999999", "cpu:0"] {
            let error = name.parse::<DeviceChoice>().expect_err(name);
            assert!(error.to_string().contains("auto, cpu, cuda"), "{error}");
        }
    }

    #[test]
    fn without_a_gpu_auto_is_the_cpu_and_says_so_where_one_was_expected_and_cuda_is_an_error_that_says_what_to_do() {
        let (cpu, note) = device(DeviceChoice::Cpu).expect("a CPU");
        assert!(cpu.is_cpu() && note.is_none());
        let (chosen, note) = device(DeviceChoice::Auto).expect("some device");
        let expected = cfg!(feature = "cuda") || Path::new(NVIDIA_DRIVER).exists();
        assert_eq!(chosen.is_cpu() && expected, note.is_some_and(|note| note.starts_with("running on the CPU: ")));
        if chosen.is_cpu() {
            let error = device(DeviceChoice::Cuda(0)).expect_err("no GPU").to_string();
            assert!(error.contains("--device cpu"), "{error}");
        }
    }
}
