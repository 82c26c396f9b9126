//! The check of pages finds what is wrong with one.

use tests::browser::Browser;

/// With a fault for each thing that is looked at.
const PAGE: &str = "data:text/html,<title></title><body style='width:3000px'><h1>one</h1><h1>two</h1><h4>four</h4>\
    <p id=twice style='color:silver'>pale</p><p id=twice>same</p><input><button tabindex=3></button>\
    <img src='data:,'><i aria-labelledby=nobody>points nowhere</i><a href='/' style='display:block;width:9px'>9</a>\
    <svg><text style='fill:silver'>drawn pale</text><path d='M0 0h9' style='stroke:white'/></svg>\
    <small style='font-size:8px'>small</small>";

/// What has to be told of it.
const TOLD: [&str; 17] = [
    "button-name: ",
    "color-contrast: ",
    "document-title: ",
    "heading-order: ",
    "html-has-lang: ",
    "image-alt: ",
    "label: ",
    "landmark-one-main: ",
    "tabindex: ",
    "\"drawn pale\" has a contrast of",
    "a line of svg",
    "the document has not one h1",
    "the page is 30",
    "two elements have the id twice",
    "points to #nobody, which is not there",
    "\"9\" is 9 by",
    "is written in 8 px",
];

#[tokio::test]
async fn a_page_that_keeps_people_out_is_told_why() {
    let Some(browser) = Browser::start().await else { return };

    browser.open(PAGE).await;
    let faults = browser.faults().await;

    for told in TOLD {
        assert!(faults.iter().any(|fault| fault.contains(told)), "{told} is not in {faults:#?}");
    }
}
