//! Sampling flags, named and defaulted as in llama.cpp, and the parameters they make.

use crate::engine::RequestError;
use crate::error::Error;
use crate::sampler::{Penalties, Sampling};

/// How tokens are chosen.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Divides the logits; 0 is greedy
    #[arg(
        long,
        visible_alias = "temperature",
        value_name = "T",
        default_value_t = 0.8,
        allow_negative_numbers = true
    )]
    pub temp: f32,
    /// Keep the K most probable tokens; 0 or less keeps all
    #[arg(
        long,
        value_name = "K",
        default_value_t = 40,
        allow_negative_numbers = true
    )]
    pub top_k: i64,
    /// Keep the most probable tokens that add up to P; 1 keeps all
    #[arg(
        long,
        value_name = "P",
        default_value_t = 0.95,
        allow_negative_numbers = true
    )]
    pub top_p: f32,
    /// Keep tokens at least P times as probable as the most probable one; 0 keeps all
    #[arg(
        long,
        value_name = "P",
        default_value_t = 0.05,
        allow_negative_numbers = true
    )]
    pub min_p: f32,
    /// Divides (or multiplies, below zero) the logits of repeated tokens; 1 is off
    #[arg(
        long,
        alias = "repetition-penalty",
        value_name = "F",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    pub repeat_penalty: f32,
    /// Tokens the penalties look back at; 0 is off, -1 the whole context
    #[arg(
        long,
        value_name = "N",
        default_value_t = 64,
        allow_negative_numbers = true
    )]
    pub repeat_last_n: i64,
    /// Subtracted from a token's logit per occurrence; 0 is off
    #[arg(
        long,
        value_name = "F",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub frequency_penalty: f32,
    /// Subtracted from the logits of tokens that occurred; 0 is off
    #[arg(
        long,
        value_name = "F",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub presence_penalty: f32,
    /// Added to the logit of a token: 15043+1.5, 15043-1.5, 15043-inf (may be repeated)
    #[arg(short = 'l', long, value_name = "ID+BIAS", value_parser = parse_bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of every prompt's random numbers; -1 draws one
    #[arg(short, long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    pub seed: i64,
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text.find(['+', '-']).and_then(|sign| {
        let (id, bias) = text.split_at(sign);
        Some((id.parse().ok()?, bias.parse().ok()?))
    });
    parsed.ok_or_else(|| {
        format!("`{text}` is not a token id and a bias; write 15043+1.5 or 15043-inf")
    })
}

impl SamplingArgs {
    /// The parameters.
    ///
    /// # Errors
    /// One is out of range.
    pub fn sampling(&self) -> Result<Sampling, Error> {
        let sampling = Sampling {
            temperature: self.temp,
            top_k: u32::try_from(self.top_k.max(0)).unwrap_or(u32::MAX),
            top_p: self.top_p,
            min_p: self.min_p,
            penalties: Penalties {
                repeat: self.repeat_penalty,
                frequency: self.frequency_penalty,
                presence: self.presence_penalty,
                last_n: u32::try_from(self.repeat_last_n).unwrap_or(u32::MAX),
            },
            logit_bias: self.logit_bias.clone(),
            seed: u64::try_from(self.seed).ok(),
        };
        match sampling.invalid_parameter() {
            Some(parameter) => Err(RequestError::Parameter(parameter).into()),
            None => Ok(sampling),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_parse() {
        assert_eq!(parse_bias("12+1.5"), Ok((12, 1.5)));
        assert_eq!(parse_bias("3-inf"), Ok((3, f32::NEG_INFINITY)));
        assert!(parse_bias("12").is_err());
        assert!(parse_bias("x-1").is_err());
    }
}
