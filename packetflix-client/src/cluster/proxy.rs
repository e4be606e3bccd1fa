//! Through which proxy the API server is reached: that of the kubeconfig, or that of the environment, as for kubectl. kube holds
//! `NO_PROXY` against the proxy, and not against the server.
//!
//! Source: `golang.org/x/net/http/httpproxy`.

use std::{env, net::IpAddr};

use hyper::Uri;

/// The proxy for a server; `own` is what the kubeconfig names.
pub(super) fn of(server: &Uri, own: Option<&str>) -> Option<String> {
    if let Some(own) = own.filter(|own| !own.is_empty()) {
        return Some(own.to_owned());
    }
    let is_https = server.scheme_str() == Some("https");
    let name = if is_https { "HTTPS_PROXY" } else { "HTTP_PROXY" };
    let proxy = variable(name)?;
    let port = server.port_u16().unwrap_or(if is_https { 443 } else { 80 });
    let without = variable("NO_PROXY").unwrap_or_default();
    (!is_direct(server.host()?, port, &without)).then_some(proxy)
}

fn variable(name: &str) -> Option<String> {
    let names = [name.to_owned(), name.to_lowercase()];
    let values = names.iter().filter_map(|name| env::var(name).ok());
    values.into_iter().find(|value| !value.is_empty())
}

/// Whether a host is reached without a proxy, as a list of hosts, domains and networks says.
fn is_direct(host: &str, port: u16, list: &str) -> bool {
    let host = host.trim_matches(['[', ']']).to_lowercase();
    let address: Option<IpAddr> = host.parse().ok();
    if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
        return true;
    }
    let is_meant = |word: &str| {
        if word == "*" {
            return true;
        }
        if let (Some((network, len)), Some(address)) = (word.split_once('/'), address) {
            return is_in(address, network, len);
        }
        let (name, of_port) = match word.rsplit_once(':') {
            Some((name, of_port)) if !name.contains(':') || name.ends_with(']') => {
                (name, of_port.parse().ok())
            }
            _ => (word, None),
        };
        if of_port.is_some_and(|of_port: u16| of_port != port) {
            return false;
        }
        let name = name.trim_matches(['[', ']']).to_lowercase();
        if address.is_some() {
            return name.parse().ok() == address;
        }
        let domain = name.strip_prefix('*').unwrap_or(&name);
        match domain.strip_prefix('.') {
            Some(_) => host.ends_with(domain),
            None => host == domain || host.ends_with(&format!(".{domain}")),
        }
    };
    list.split(',')
        .map(str::trim)
        .any(|word| !word.is_empty() && is_meant(word))
}

fn is_in(address: IpAddr, network: &str, len: &str) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let (Ok(network), Ok(len)) = (network.parse(), len.parse::<u32>()) else {
        return false;
    };
    let ((address, width), (network, of_network)) = (bits(address), bits(network));
    let differ = (address ^ network).leading_zeros();
    width == of_network && len <= width && differ >= len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_reached_without_a_proxy_as_the_list_says() {
        for (host, list, expected) in [
            ("api.example.org", "", false),
            ("127.0.0.1", "", true),
            ("[::1]", "", true),
            ("localhost", "", true),
            ("api.example.org", "*", true),
            ("api.example.org", "example.org", true),
            ("api.example.org", ".example.org", true),
            ("api.example.org", "*.example.org", true),
            ("example.org", ".example.org", false),
            ("anexample.org", "example.org", false),
            ("API.example.org", "x, api.EXAMPLE.org:6443", true),
            ("api.example.org", "api.example.org:443", false),
            ("10.1.2.3", "10.0.0.0/8", true),
            ("11.1.2.3", "10.0.0.0/8,fd00::/8", false),
            ("[fd00::1]", "10.0.0.0/8,fd00::/8", true),
            ("10.1.2.3", "10.1.2.3", true),
            ("[fd00::1]", "[fd00::1]:6443", true),
            ("10.1.2.3", "10.0.0.0/99,x/8,10.0.0.0/x,/", false),
            ("10.1.2.3", "0.0.0.0/0", true),
        ] {
            assert_eq!(is_direct(host, 6443, list), expected, "{host} {list}");
        }
        let server = Uri::from_static("https://api.example.org:6443");
        assert_eq!(of(&server, Some("http://proxy")).as_deref(), Some("http://proxy"));
    }
}
