//! Which modules get an adapter, of which rank and scale, and how they begin.
//!
//! Names and rules are those of PEFT, so that a configuration means the same in both.

use fancy_regex::Regex;

use crate::models::LinearModule;
use crate::ops::philox;
use crate::{Error, Result};

/// Largest rank: the largest hidden size of the supported families, above which no weight has more rank.
const MAX_RANK: usize = 16_384;

/// Which linear layers get an adapter. Two lists are equal if they have the same names in any order.
#[derive(Debug, Clone, Eq)]
pub enum Targets {
    /// Modules whose path is one of these or ends with `.` and one of these.
    List(Vec<String>),
    /// Modules whose whole path matches this expression.
    Regex(String),
    /// Every linear layer but the head, and not the embedding.
    AllLinear,
}

impl PartialEq for Targets {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(one), Self::List(other)) => sorted(one) == sorted(other),
            (Self::Regex(one), Self::Regex(other)) => one == other,
            (one, other) => std::mem::discriminant(one) == std::mem::discriminant(other),
        }
    }
}

impl Targets {
    /// The same targets with the names of a list in alphabetical order, once each.
    pub(crate) fn sorted(&self) -> Self {
        match self {
            Self::List(names) => Self::List(sorted(names).into_iter().cloned().collect()),
            other => other.clone(),
        }
    }
}

/// The items in order, once each.
pub(crate) fn sorted<T: Ord>(items: &[T]) -> Vec<&T> {
    let mut items: Vec<&T> = items.iter().collect();
    items.sort_unstable();
    items.dedup();
    items
}

impl std::fmt::Display for Targets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::List(names) => f.write_str(&names.join(",")),
            Self::Regex(expression) => write!(f, "regex:{expression}"),
            Self::AllLinear => f.write_str("all-linear"),
        }
    }
}

/// What adapters are to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank r of the update.
    pub rank: usize,
    /// The update is multiplied by alpha / r.
    pub alpha: f64,
    /// Probability with which elements of the adapters' input are dropped.
    pub dropout: f32,
    /// Multiply by alpha / √r instead (Kalajdzievski, 2023, arXiv:2312.03732).
    pub rslora: bool,
    /// Which modules.
    pub targets: Targets,
    /// Modules left out, by the rule of [`Targets::List`].
    pub exclude: Vec<String>,
    /// Other ranks for modules whose path ends with a match of the expression. The first that matches counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Other alphas, likewise.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Only these layers.
    pub layers: Option<Vec<usize>>,
    /// Decides the initial A.
    pub seed: u64,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            rslora: false,
            targets: Targets::AllLinear,
            exclude: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            layers: None,
            seed: 0,
        }
    }
}

/// An adapter to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraModule {
    /// Path of the linear layer.
    pub path: String,
    /// Columns of its weight.
    pub in_features: usize,
    /// Rows of its weight.
    pub out_features: usize,
    /// Rank.
    pub rank: usize,
    /// alpha / r, or alpha / √r.
    pub scale: f64,
    /// True if it is the embedding.
    pub is_embedding: bool,
}

impl LoraConfig {
    /// Refuses values outside their ranges.
    pub fn validate(&self) -> Result<()> {
        let ranks = std::iter::once(&self.rank).chain(self.rank_pattern.iter().map(|(_, rank)| rank));
        if let Some(rank) = ranks.clone().find(|&&rank| rank > MAX_RANK) {
            let message = format!("is {rank}, must be at most {MAX_RANK}; usually 4 to 64");
            return Err(Error::invalid("LoRA rank", message));
        }
        if ranks.into_iter().any(|&rank| rank == 0) {
            return Err(Error::invalid(
                "LoRA rank",
                "is 0, which adapts nothing; use 1 or more, usually 4 to 64",
            ));
        }
        let alphas = std::iter::once(&self.alpha).chain(self.alpha_pattern.iter().map(|(_, alpha)| alpha));
        if let Some(alpha) = alphas.into_iter().find(|alpha| !(alpha.is_finite() && **alpha > 0.0)) {
            return Err(Error::invalid(
                "LoRA alpha",
                format!("is {alpha}, must be above 0; usually 1 to 2 times the rank"),
            ));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::invalid("LoRA dropout", format!("is {}, must be in [0, 1)", self.dropout)));
        }
        Ok(())
    }

    /// Returns true if the targets name a module of this path. `all-linear` names every one, since which modules are
    /// linear layers is not in their paths.
    pub(crate) fn names(&self, path: &str) -> Result<bool> {
        match &self.targets {
            Targets::AllLinear => Ok(true),
            Targets::List(names) => Ok(names.iter().any(|name| ends_with(path, name))),
            Targets::Regex(expression) => {
                matches("LoRA targets", &compiled("LoRA targets", &format!("^(?:{expression})$"))?, path)
            }
        }
    }

    /// The adapters for a model's linear layers. A target that matches nothing is an error that lists what there is.
    pub fn resolve(&self, modules: &[LinearModule]) -> Result<Vec<LoraModule>> {
        let targeted = self.targeted(modules)?;
        let layers_exist = |layer: &usize| modules.iter().any(|module| module.layer == Some(*layer));
        if let Some(missing) = self.layers.iter().flatten().find(|layer| !layers_exist(layer)) {
            let count = modules.iter().filter_map(|m| m.layer).max().map_or(0, |last| last + 1);
            return Err(Error::invalid(
                "LoRA layers",
                format!("layer {missing} does not exist; there are 0 to {}", count.saturating_sub(1)),
            ));
        }
        let mut resolved = Vec::new();
        for module in targeted {
            let in_layers = match (&self.layers, module.layer) {
                (Some(layers), Some(layer)) => layers.contains(&layer),
                (Some(_), None) => false,
                (None, _) => true,
            };
            if !in_layers || self.exclude.iter().any(|name| ends_with(&module.path, name)) {
                continue;
            }
            let rank = pattern(&self.rank_pattern, &module.path)?.unwrap_or(self.rank);
            let alpha = pattern(&self.alpha_pattern, &module.path)?.unwrap_or(self.alpha);
            let divisor = if self.rslora { (rank as f64).sqrt() } else { rank as f64 };
            resolved.push(LoraModule {
                path: module.path.clone(),
                in_features: module.in_features,
                out_features: module.out_features,
                rank,
                scale: alpha / divisor,
                is_embedding: module.is_embedding,
            });
        }
        if resolved.is_empty() {
            return Err(Error::invalid(
                "LoRA targets",
                "nothing is left after layers and exclusions; loosen them",
            ));
        }
        self.check_names(modules, &resolved)?;
        Ok(resolved)
    }

    /// Refuses names that match nothing, since they would have no effect.
    fn check_names(&self, modules: &[LinearModule], adapted: &[LoraModule]) -> Result<()> {
        let is_unknown = |name: &&String| !modules.iter().any(|module| ends_with(&module.path, name));
        if let Some(unknown) = self.exclude.iter().find(is_unknown) {
            let message =
                format!("'{unknown}' is no linear layer of this model; there are {}", names_of(modules));
            return Err(Error::invalid("excluded modules", message));
        }
        let ranks = self.rank_pattern.iter().map(|(name, _)| ("rank pattern", name));
        let alphas = self.alpha_pattern.iter().map(|(name, _)| ("alpha pattern", name));
        for (kind, name) in ranks.chain(alphas) {
            let one = [(name.clone(), ())];
            let matching =
                adapted.iter().map(|module| pattern(&one, &module.path)).collect::<Result<Vec<_>>>()?;
            if matching.iter().all(Option::is_none) {
                let message =
                    format!("'{name}' matches no adapted module; the model has {}", names_of(modules));
                return Err(Error::invalid(kind, message));
            }
        }
        Ok(())
    }

    fn targeted<'a>(&self, modules: &'a [LinearModule]) -> Result<Vec<&'a LinearModule>> {
        let found: Vec<&LinearModule> = match &self.targets {
            Targets::AllLinear => {
                modules.iter().filter(|module| !module.is_head && !module.is_embedding).collect()
            }
            Targets::List(names) => {
                let unknown =
                    names.iter().find(|name| !modules.iter().any(|module| ends_with(&module.path, name)));
                if let Some(unknown) = unknown {
                    let message = format!(
                        "'{unknown}' is no linear layer of this model; there are {}",
                        names_of(modules)
                    );
                    return Err(Error::invalid("LoRA targets", message));
                }
                modules
                    .iter()
                    .filter(|module| names.iter().any(|name| ends_with(&module.path, name)))
                    .collect()
            }
            Targets::Regex(expression) => {
                let regex = compiled("LoRA targets", &format!("^(?:{expression})$"))?;
                let mut found = Vec::new();
                for module in modules {
                    if matches("LoRA targets", &regex, &module.path)? {
                        found.push(module);
                    }
                }
                found
            }
        };
        if found.is_empty() {
            let message = format!("no linear layer matches; there are {}", names_of(modules));
            return Err(Error::invalid("LoRA targets", message));
        }
        Ok(found)
    }
}

fn ends_with(path: &str, name: &str) -> bool {
    path == name || path.strip_suffix(name).is_some_and(|front| front.ends_with('.'))
}

fn compiled(what: &str, expression: &str) -> Result<Regex> {
    Regex::new(expression)
        .map_err(|error| Error::invalid(what, format!("'{expression}' is no regular expression: {error}")))
}

/// An expression that gives up on a path is an error: a module left out silently would not train.
fn matches(what: &str, regex: &Regex, path: &str) -> Result<bool> {
    regex
        .is_match(path)
        .map_err(|error| Error::invalid(what, format!("'{regex}' cannot be matched with {path}: {error}")))
}

/// The value of the first pattern that the end of the path matches.
fn pattern<T: Copy>(patterns: &[(String, T)], path: &str) -> Result<Option<T>> {
    for (expression, value) in patterns {
        let regex = compiled("LoRA pattern", &format!(r"^(?:.*\.)?(?:{expression})$"))?;
        if matches("LoRA pattern", &regex, path)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// The last parts of all paths, once each.
fn names_of(modules: &[LinearModule]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for module in modules {
        let name = module.path.rsplit('.').next().unwrap_or(&module.path);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}

/// The initial A `[rank, in_features]`: Kaiming uniform with a = √5, that is uniform in ±1/√in (He et al., 2015,
/// arXiv:1502.01852; the values PEFT uses). The numbers depend on the seed and the module's path only.
pub fn init_a(rank: usize, in_features: usize, seed: u64, path: &str) -> Vec<f32> {
    let bound = 1.0 / (in_features as f64).sqrt();
    let number = |index| (bound * (2.0 * uniform(index, seed, path) - 1.0)) as f32;
    (0..rank * in_features).map(number).collect()
}

/// The initial B `[out_features, rank]` of the embedding: normal with mean 0 and variance 1, as in PEFT, where A begins at
/// zero (Box and Muller, 1958). The numbers depend on the seed and the module's path only.
pub(crate) fn init_embedding_b(out_features: usize, rank: usize, seed: u64, path: &str) -> Vec<f32> {
    let number = |index| {
        let (radius, angle) = (uniform(2 * index, seed, path), uniform(2 * index + 1, seed, path));
        ((-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()) as f32
    };
    (0..out_features * rank).map(number).collect()
}

/// A number in (0, 1) that depends on these three only.
fn uniform(index: usize, seed: u64, path: &str) -> f64 {
    // FNV-1a, 64 bits.
    let hash = path
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let counter = [(index / 4) as u32, ((index / 4) >> 32) as u32, hash as u32, (hash >> 32) as u32];
    let word = philox(counter, [seed as u32, (seed >> 32) as u32])[index % 4];
    (f64::from(word) + 0.5) / 4_294_967_296.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Vec<LinearModule> {
        let names = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"];
        let mut modules: Vec<LinearModule> = (0..3)
            .flat_map(|layer| names.map(|name| (layer, format!("model.layers.{layer}.{name}"))))
            .map(|(layer, path)| LinearModule {
                path,
                in_features: 8,
                out_features: 4,
                layer: Some(layer),
                is_head: false,
                is_embedding: false,
            })
            .collect();
        let head = LinearModule {
            path: "lm_head".into(),
            in_features: 8,
            out_features: 99,
            layer: None,
            is_head: true,
            is_embedding: false,
        };
        modules.push(head);
        modules
    }

    fn paths(config: &LoraConfig) -> Vec<String> {
        config.resolve(&model()).unwrap().into_iter().map(|m| m.path).collect()
    }

    #[test]
    fn targets_are_matched_as_peft_does() {
        let list = |names: &[&str]| Targets::List(names.iter().map(ToString::to_string).collect());
        let with = |targets| LoraConfig { targets, ..LoraConfig::default() };
        assert_eq!(paths(&with(Targets::AllLinear)).len(), 9);
        assert_eq!(paths(&with(list(&["q_proj"]))).len(), 3);
        assert_eq!(paths(&with(list(&["model.layers.1.self_attn.q_proj", "lm_head"]))).len(), 2);
        let even = with(Targets::Regex(r"model\.layers\.[02]\..*_proj".into()));
        assert_eq!(paths(&even).len(), 6);
        let some =
            LoraConfig { layers: Some(vec![2]), exclude: vec!["down_proj".into()], ..LoraConfig::default() };
        assert_eq!(paths(&some), ["model.layers.2.self_attn.q_proj", "model.layers.2.self_attn.v_proj"]);
        let nothing = [
            LoraConfig { exclude: vec!["q_prj".into()], ..LoraConfig::default() },
            LoraConfig { rank_pattern: vec![("nosuch".into(), 4)], ..LoraConfig::default() },
            LoraConfig { alpha_pattern: vec![("lm_head".into(), 4.0)], ..LoraConfig::default() },
        ];
        let errors = nothing.map(|config| config.resolve(&model()).unwrap_err().to_string());
        assert!(
            errors[0].starts_with("excluded modules: 'q_prj' is no linear layer of this model"),
            "{errors:?}"
        );
        assert!(
            errors[1].starts_with("rank pattern: 'nosuch' matches no adapted module; the model has q_proj")
        );
        assert!(errors[2].starts_with("alpha pattern: 'lm_head' matches no adapted module"), "{errors:?}");
        let error = with(list(&["proj"])).resolve(&model()).unwrap_err().to_string();
        assert_eq!(
            error,
            "LoRA targets: 'proj' is no linear layer of this model; there are q_proj, v_proj, down_proj, lm_head"
        );
        assert!(
            with(Targets::Regex("(".into()))
                .resolve(&model())
                .unwrap_err()
                .to_string()
                .contains("regular expression")
        );
        let far = LoraConfig { layers: Some(vec![7]), ..LoraConfig::default() };
        assert!(
            far.resolve(&model())
                .unwrap_err()
                .to_string()
                .contains("layer 7 does not exist; there are 0 to 2")
        );
    }

    #[test]
    fn targets_are_compared_as_sets() {
        let list = |names: &[&str]| Targets::List(names.iter().map(ToString::to_string).collect());
        assert_eq!(list(&["q_proj", "v_proj"]), list(&["v_proj", "q_proj", "v_proj"]));
        assert_ne!(list(&["q_proj"]), list(&["q_proj", "v_proj"]));
        assert_ne!(list(&["q_proj", "v_proj"]), list(&["q_proj"]));
        assert_ne!(list(&["q_proj"]), Targets::Regex("q_proj".into()));
        assert_ne!(Targets::Regex("q_proj".into()), Targets::Regex("v_proj".into()));
        assert_eq!(Targets::AllLinear, Targets::AllLinear);
    }

    #[test]
    fn patterns_and_rslora_give_ranks_and_scales() {
        let config = LoraConfig {
            rank: 4,
            alpha: 8.0,
            rank_pattern: vec![
                ("down_proj".to_owned(), 16),
                (r"layers\.0\.self_attn\.q_proj".to_owned(), 2),
                // Both match; the first counts, which is not the first by name.
                ("0.self_attn.q_proj".to_owned(), 5),
            ],
            alpha_pattern: vec![("v_proj".to_owned(), 2.0)],
            rslora: true,
            ..LoraConfig::default()
        };
        let modules = config.resolve(&model()).unwrap();
        let found: Vec<(usize, f64)> = modules.iter().map(|m| (m.rank, m.scale)).take(4).collect();
        assert_eq!(found, [(2, 8.0 / 2.0_f64.sqrt()), (4, 1.0), (16, 2.0), (4, 4.0)]);
    }

    #[test]
    fn values_outside_their_ranges_are_refused() {
        let refused = |config: LoraConfig| config.validate().unwrap_err().to_string();
        assert!(refused(LoraConfig { rank: 0, ..LoraConfig::default() }).contains("LoRA rank: is 0"));
        let large = LoraConfig { rank: 1_000_000_000, ..LoraConfig::default() };
        assert!(refused(large).contains("LoRA rank: is 1000000000, must be at most 16384"));
        assert!(
            refused(LoraConfig { alpha: f64::NAN, ..LoraConfig::default() }).contains("LoRA alpha: is NaN")
        );
        assert!(refused(LoraConfig { dropout: 1.0, ..LoraConfig::default() }).contains("must be in [0, 1)"));
        LoraConfig::default().validate().unwrap();
    }

    #[test]
    fn the_initial_a_is_uniform_and_repeats() {
        let a = init_a(16, 576, 42, "model.layers.0.self_attn.q_proj");
        let bound = 1.0 / 24.0;
        assert!(a.iter().all(|x| x.abs() <= bound));
        let mean = a.iter().sum::<f32>() / a.len() as f32;
        let variance = a.iter().map(|x| x * x).sum::<f32>() / a.len() as f32;
        // Five standard errors of the mean and of the second moment of 9216 uniform numbers.
        assert!(mean.abs() < 5.0 * bound / 3.0_f32.sqrt() / 96.0);
        assert!((variance - bound * bound / 3.0).abs() < 5.0 * bound * bound * 0.3 / 96.0);
        assert_eq!(a, init_a(16, 576, 42, "model.layers.0.self_attn.q_proj"));
        assert_ne!(a, init_a(16, 576, 43, "model.layers.0.self_attn.q_proj"));
        assert_ne!(a, init_a(16, 576, 42, "model.layers.1.self_attn.q_proj"));
    }

    #[test]
    fn the_initial_b_of_the_embedding_is_normal() {
        let b = init_embedding_b(576, 16, 42, "model.embed_tokens");
        let mean = b.iter().sum::<f32>() / b.len() as f32;
        let variance = b.iter().map(|x| x * x).sum::<f32>() / b.len() as f32;
        // Five standard errors of the mean and of the second moment of 9216 normal numbers.
        assert!(mean.abs() < 5.0 / 96.0, "{mean}");
        assert!((variance - 1.0).abs() < 5.0 * 2.0_f32.sqrt() / 96.0, "{variance}");
    }
}
